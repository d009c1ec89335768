"""What is fitted to features: neighbours, linear layers, classifiers."""
