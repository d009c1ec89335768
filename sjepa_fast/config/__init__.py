# SPDX-License-Identifier: Apache-2.0
"""Configurations: the schema, presets, files and the command line."""
