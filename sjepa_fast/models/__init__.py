# SPDX-License-Identifier: Apache-2.0
"""Tubelet embedding, the vanilla transformer encoder and the packed predictor."""
