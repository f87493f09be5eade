"""Layers that Paddle lacks."""
