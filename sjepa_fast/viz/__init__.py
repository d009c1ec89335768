"""Pictures of runs, results and clips; matplotlib figures without global state."""
