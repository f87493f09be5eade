"""A bundle over HTTP."""
