"""Models that run: bundles and programs, opened models, their classes and answers."""
