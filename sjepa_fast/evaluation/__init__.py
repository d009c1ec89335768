# SPDX-License-Identifier: Apache-2.0
"""Scores of an encoder: protocols, probes, features, metrics, and the collapse panel."""
