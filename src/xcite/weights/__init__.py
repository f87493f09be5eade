"""Weights of every dialect, read without executing anything."""
