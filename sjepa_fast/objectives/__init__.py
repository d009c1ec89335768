"""Masking, the EMA momentum schedule and the training objectives."""
