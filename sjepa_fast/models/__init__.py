"""Tubelet embedding, the vanilla transformer encoder and the packed predictor."""
