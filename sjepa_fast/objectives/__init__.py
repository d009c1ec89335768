# SPDX-License-Identifier: Apache-2.0
"""Masking, the EMA momentum schedule and the training objectives."""
