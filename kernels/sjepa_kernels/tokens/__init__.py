"""Sequences of visible and mask tokens."""
