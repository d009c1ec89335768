# SPDX-License-Identifier: Apache-2.0
"""Crops, views and tubelets of clips."""
