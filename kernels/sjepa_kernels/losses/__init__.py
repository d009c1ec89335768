# SPDX-License-Identifier: Apache-2.0
"""Centered cross-entropies and their center."""
