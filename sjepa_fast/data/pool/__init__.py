# SPDX-License-Identifier: Apache-2.0
"""Pools: several stores in one, with the joints, units and axes of all made sure of."""
