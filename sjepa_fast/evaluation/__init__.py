"""Frozen-feature protocols (kNN, linear), their metrics, and the collapse panel."""
