"""The self-check behind `python -m sjepa_kernels`."""
