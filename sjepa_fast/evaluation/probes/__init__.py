"""Classifiers fitted to features: nearest neighbours, linear layers, fine-tuning."""
