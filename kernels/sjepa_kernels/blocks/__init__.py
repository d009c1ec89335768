# SPDX-License-Identifier: Apache-2.0
"""Fused parts of a transformer block."""
