"""Accuracy, and the evaluation of engines and bundles."""
