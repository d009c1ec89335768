"""The report of runs: one page that works from a file, without a network."""
