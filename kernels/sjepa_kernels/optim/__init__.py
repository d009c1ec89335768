"""AdamW and what a step does with the new weights."""
