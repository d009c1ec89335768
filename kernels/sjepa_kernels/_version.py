# SPDX-License-Identifier: Apache-2.0
"""The version of both distributions; builds and sjepa_fast read it without importing torch."""

__version__ = "0.2.0"
