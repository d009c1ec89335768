# SPDX-License-Identifier: Apache-2.0
"""The report of runs: one page that works from a file, without a network."""
