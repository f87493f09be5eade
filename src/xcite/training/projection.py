"""The student's projection onto what a teacher gives: further rows of its classifier.

`distill.space` has the student learn all of the teacher's classes, or its features, beside its own
classes. The rows train, are averaged and go on with a run like the others; weights that leave the
run have lost them.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from xcite.canonical import initial_weights, shapes
from xcite.families import Architecture


def widened(architecture: Architecture, outputs: int) -> Architecture:
    """The model with so many outputs beside its classes."""
    return replace(architecture, num_classes=architecture.num_classes + outputs)


def widen(
    weights: Mapping[str, np.ndarray], architecture: Architecture, outputs: int, seed: int
) -> dict[str, np.ndarray]:
    """Canonical weights of ``architecture`` with drawn rows for ``outputs`` more."""
    drawn = initial_weights(widened(architecture, outputs), seed)
    head = architecture.head
    return {
        name: np.concatenate([tensor, drawn[name][len(tensor) :]])
        if name.startswith(head)
        else tensor
        for name, tensor in weights.items()
    }


def student_alone(
    weights: Mapping[str, np.ndarray], student: Architecture
) -> dict[str, np.ndarray]:
    """The student's canonical weights, of those of a model that is widened."""
    own = shapes(student)
    return {
        name: tensor[: own[name][0]] if name.startswith(student.head) else tensor
        for name, tensor in weights.items()
        if name in own
    }
