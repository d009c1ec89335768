"""Crops, views and tubelets of clips."""
