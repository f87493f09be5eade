"""Layers that PyTorch itself does not have."""
