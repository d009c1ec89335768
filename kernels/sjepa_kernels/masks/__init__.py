# SPDX-License-Identifier: Apache-2.0
"""Which tokens are hidden."""
