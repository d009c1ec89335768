"""Speed rows, the plain reference and the report: `pytest benchmarks/ --benchmark-only`."""
