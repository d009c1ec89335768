"""Devices, schedules, checkpoints and logs of a training run."""
