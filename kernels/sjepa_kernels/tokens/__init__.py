# SPDX-License-Identifier: Apache-2.0
"""Sequences of visible and mask tokens."""
