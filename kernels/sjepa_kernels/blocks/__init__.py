"""Fused parts of a transformer block."""
