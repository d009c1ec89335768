"""Configurations: the schema, presets, files and the command line."""
