"""Accuracy, evaluation of engines and bundles, alignment of engines."""
