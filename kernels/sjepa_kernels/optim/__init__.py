# SPDX-License-Identifier: Apache-2.0
"""AdamW and what a step does with the new weights."""
