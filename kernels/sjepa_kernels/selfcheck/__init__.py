# SPDX-License-Identifier: Apache-2.0
"""The self-check behind `python -m sjepa_kernels`."""
