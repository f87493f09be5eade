"""A model that can be asked: bundles and programs, opened models, their classes and answers."""
