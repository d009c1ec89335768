"""Speed rows, the plain reference and the report: `pytest benchmarks/ --benchmark-only`."""

import sjepa_fast  # noqa: F401  (before torch: it says how OpenMP's threads wait)
