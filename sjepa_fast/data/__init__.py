# SPDX-License-Identifier: Apache-2.0
"""Readers of public formats, the store they are written to, and clips on a device."""
