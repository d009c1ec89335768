"""Every method on every small set by every protocol: what is run, and the tables of it."""
