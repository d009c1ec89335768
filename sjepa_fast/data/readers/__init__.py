"""One reader for each file format people already have; each yields `Record`s."""
