# SPDX-License-Identifier: Apache-2.0
"""The training step and what measures it: FLOPs, profile, report."""
