"""Weights in, checked bundle out: the inference graph, its agreement with an engine, 8 bits."""
