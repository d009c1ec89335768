"""The GPU report: its sections, its page and its pictures."""
