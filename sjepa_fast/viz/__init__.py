# SPDX-License-Identifier: Apache-2.0
"""Pictures of runs, results and clips; matplotlib figures without global state."""
