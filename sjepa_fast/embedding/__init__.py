# SPDX-License-Identifier: Apache-2.0
"""A trained encoder for other programs: clips in, features out; saved, loaded and published."""
