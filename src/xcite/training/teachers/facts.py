"""What is known about a teacher without running it."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xcite import canonical
from xcite.errors import XciteError
from xcite.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Size
from xcite.recipe import Recipe
from xcite.runtime.bundle import is_bundle, program_files, read_info, require_classes
from xcite.variants import Architecture, find
from xcite.weights import open_weights

PROGRAMS = (".onnx", ".xml")


@dataclass(frozen=True)
class Facts:
    """What is known about a teacher without running it.

    Attributes:
        sha256: of its canonical weights (whatever file they lie in) or of the program's files.
        preprocessing: its mean and std, and the side of the input it is given.
        classes: number of its logits; None when the program does not say.
        class_names: one per logit; None when the file names none.
        features: how many numbers its classifier sees; None when the program does not say.
    """

    name: str
    sha256: str
    preprocessing: Preprocessing
    classes: int | None
    class_names: list[str] | None
    notes: list[str]
    features: int | None = None

    def outputs(self, space: str) -> int | None:
        """How many numbers it gives of a picture, its classes or features; None if unknown."""
        return self.features if space == "features" else self.classes

    def identity(self) -> dict[str, Any]:
        """The teacher's name and hash and how it sees pictures, as plain data."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "size": self.preprocessing.model_dump(mode="json")["size"],
            "mean": list(self.preprocessing.mean),
            "std": list(self.preprocessing.std),
        }


def facts(recipe: Recipe, class_names: Sequence[str]) -> Facts:
    """What is known about ``recipe.distill.teacher``; reads files, runs nothing.

    Args:
        class_names: the student's.

    Raises:
        XciteError: unreadable teacher, or other channels than the student's.
    """
    assert recipe.distill.teacher is not None
    if is_program(recipe.distill.teacher):
        return program_facts(recipe.distill.teacher, recipe)
    return network_facts(recipe.distill.teacher, recipe, class_names)[0]


def is_program(path: str) -> bool:
    """Whether the file is a graph, not weights."""
    return Path(path).suffix.lower() in PROGRAMS


def network_facts(
    path: str, recipe: Recipe, class_names: Sequence[str]
) -> tuple[Facts, Architecture, dict[str, np.ndarray]]:
    """A weights file or run folder: the facts, the architecture and the canonical weights."""
    student, distill = recipe.preprocessing, recipe.distill
    file = open_weights(path)
    architecture = file.architecture
    if distill.teacher_model is not None:
        architecture = find(
            distill.teacher_model.name,
            num_classes=architecture.num_classes,
            in_chans=architecture.in_chans,
            **distill.teacher_model.overrides(),
        )
        try:
            canonical.check(file.tensors, architecture)
        except XciteError as error:
            raise XciteError(
                f"teacher {path} is no {distill.teacher_model.name}: {error}"
            ) from error
    own, names, notes = file.metadata.preprocessing, file.metadata.class_names, []
    if file.dialect != "xcite" and names is not None and not set(class_names) <= set(names):
        names = None  # the file itself names none: these were guessed by their number
    fixed = own.size if own is not None and file.dialect == "xcite" else None
    if own is None:
        # Files without metadata are the published ones, all trained with ImageNet's mean and std.
        own = student
        if student.channels == 3:
            own = Preprocessing(size=student.size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        notes.append(
            f"teacher {path} does not name its mean and std: taken as {own.mean}, {own.std}"
        )
    known = Facts(
        Path(path).name,
        weights_digest(file.tensors),
        _teacher_preprocessing(path, own, recipe, fixed),
        architecture.num_classes,
        names,
        notes,
        architecture.num_features,
    )
    return known, architecture, file.tensors


def program_facts(path: str, recipe: Recipe) -> Facts:
    """An .onnx or .xml file: its hash, and what its bundle says if it has one."""
    program, notes = Path(os.path.expanduser(path)), []
    own, names, fixed = recipe.preprocessing, None, None
    try:
        bundle = read_info(program.parent) if is_bundle(program.parent) else None
        if bundle is not None and program_files(program) <= set(bundle.files):
            require_classes(bundle, program.parent)
            own, names = bundle.preprocessing, bundle.class_names or None
            fixed = bundle.size
        else:
            notes.append(f"teacher {path} has no bundle.json beside it: given the student's input")
        digest = hashlib.sha256()
        for part in (program, program.with_suffix(".bin"), Path(f"{path}.data")):
            if part == program or part.is_file():
                digest.update(part.read_bytes())
    except (OSError, XciteError) as error:
        raise XciteError(f"cannot read the teacher {path}: {error}") from error
    preprocessing = _teacher_preprocessing(path, own, recipe, fixed)
    return Facts(program.name, digest.hexdigest(), preprocessing, None, names, notes)


def _teacher_preprocessing(
    path: str, own: Preprocessing, recipe: Recipe, fixed: Size | None = None
) -> Preprocessing:
    """The teacher's mean and std with the side of the input that it will get."""
    if own.channels != recipe.preprocessing.channels:
        raise XciteError(
            f"teacher {path} expects {own.channels} channels, the student's pictures have "
            f"{recipe.preprocessing.channels}; set preprocessing.mean and .std alike for both"
        )
    size = recipe.distill.teacher_size or fixed or recipe.preprocessing.size
    return own.at(size)


def weights_digest(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of canonical weights: the same for the same numbers in any file format.

    BatchNorm's counters are left out: some dialects have none, and they change no answer.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if not name.endswith("num_batches_tracked"):
            tensor = np.ascontiguousarray(tensors[name], dtype="<f4")
            digest.update(f"{name} {tensor.shape}\n".encode())
            digest.update(tensor.tobytes())
    return digest.hexdigest()
