"""Scores of an encoder: protocols, probes, features, metrics, and the collapse panel."""
