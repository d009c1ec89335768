"""The step as the official codes write it, in plain PyTorch."""
