# SPDX-License-Identifier: Apache-2.0
"""Devices, schedules, checkpoints and logs of a training run."""
