"""The protocols of `sjepa_fast.evaluate`, one file each: a request in, an outcome back."""
