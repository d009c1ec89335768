"""The training step and what measures it: FLOPs, profile, report."""
