"""Centered cross-entropies and their center."""
