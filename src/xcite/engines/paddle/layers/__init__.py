"""Layers that Paddle lacks or has otherwise."""
