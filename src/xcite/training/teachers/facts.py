"""What is known about a teacher before it teaches."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xcite import canonical
from xcite.errors import XciteError, naming
from xcite.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Size, in_pixels, sides
from xcite.recipe import Recipe
from xcite.runtime import programs
from xcite.runtime.bundle import (
    BundleInfo,
    is_bundle,
    program_files,
    read_info,
    require_classes,
    sealed_program,
)
from xcite.runtime.external_data import external_files
from xcite.runtime.program import Program
from xcite.variants import Architecture, find
from xcite.weights import open_weights


@dataclass(frozen=True)
class Facts:
    """What is known about a teacher before it teaches.

    Attributes:
        sha256: of its canonical weights (whatever file they lie in) or of the program's files.
        preprocessing: its mean and std, and the side of the input it is given.
        classes: number of its logits.
        class_names: one per logit; None when the file names none.
        features: how many numbers its classifier sees; None when the program does not say.
    """

    name: str
    sha256: str
    preprocessing: Preprocessing
    classes: int
    class_names: list[str] | None
    notes: list[str]
    features: int | None = None

    def outputs(self, space: str) -> int:
        """How many numbers it gives of a picture in ``distill.space``, its classes or features.

        Raises:
            XciteError: the features of a program, which does not show them.
        """
        if space != "features":
            return self.classes
        if self.features is None:
            raise XciteError("it is a program, which shows no features: give weights instead")
        return self.features

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
    """What is known about ``recipe.distill.teacher``.

    Weights are read and nothing is run. A program is loaded, and sees two black pictures.

    Args:
        class_names: the student's.

    Raises:
        XciteError: unreadable teacher, or other channels than the student's; names its file.
    """
    path = recipe.distill.teacher
    assert path is not None
    with naming(path, f"teacher {path}"):
        if is_program(path):
            return program_facts(path, recipe)[0]
        return network_facts(path, recipe, class_names)[0]


def is_program(path: str) -> bool:
    """Whether the file is a program, or the folder a bundle, and not weights."""
    place = os.path.expanduser(path)
    return is_bundle(place) or programs.is_program(place)


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
    own = _given(recipe) or own
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


def program_facts(path: str, recipe: Recipe) -> tuple[Facts, Program]:
    """A program or a bundle: what it and its description say, and the program, ready to run.

    Its number of classes is counted in its answer to black pictures.
    """
    place, notes = Path(os.path.expanduser(path)), []
    try:
        file, bundle = _with_bundle(place)
        digest = hashlib.sha256()
        for part in [file, *_beside(file)]:
            digest.update(part.read_bytes())
    except (OSError, XciteError) as error:
        raise XciteError(f"cannot read the teacher {path}: {error}") from error
    own, names, fixed = _given(recipe), None, None
    if bundle is not None:
        own = own or bundle.preprocessing
        names, fixed = bundle.class_names or None, bundle.size
    elif own is None:
        own = recipe.preprocessing
        notes.append(
            f"teacher {path} has no bundle.json beside it: given the student's input; "
            "distill.teacher_mean and .teacher_std say otherwise"
        )
    program = programs.open_program(
        file, called=f"teacher {path}", outputs=bundle.outputs if bundle is not None else None
    )
    fixed = fixed or program.size
    wanted = recipe.distill.teacher_size
    if fixed is not None and wanted is not None and sides(wanted) != sides(fixed):
        raise XciteError(
            f"teacher {path} takes pictures of {in_pixels(fixed)} pixels alone; "
            f"distill.teacher_size is {in_pixels(wanted)}, leave it out"
        )
    if len(program.takes) not in (0, 4) or program.takes[1:2] not in ((), (None,), (own.channels,)):
        raise XciteError(
            f"teacher {path} takes arrays {_shape(program.takes)}; expected "
            f"(B, {own.channels}, H, W)"
        )
    preprocessing = _teacher_preprocessing(path, own, recipe, fixed)
    classes = _counted(program, preprocessing)
    if names is not None and len(names) != classes:
        raise XciteError(f"teacher {path} gives {classes} logits and its bundle names {len(names)}")
    notes += program.notes
    known = Facts(file.name, digest.hexdigest(), preprocessing, classes, names, notes)
    return known, program


def _with_bundle(place: Path) -> tuple[Path, BundleInfo | None]:
    """The program that a path means, and the description of the bundle it belongs to, checked."""
    folder = place if is_bundle(place) else place.parent
    info = read_info(folder) if is_bundle(folder) else None
    if info is None or not (folder == place or program_files(place) <= set(info.files)):
        return place, None
    require_classes(info, folder)
    return (sealed_program(folder, info) if folder == place else place), info


def _beside(program: Path) -> list[Path]:
    """The other files that hold a program's weights."""
    names = program_files(program) - {program.name}
    if program.suffix.lower() == ".onnx":
        names |= external_files(program)
    return [program.parent / name for name in sorted(names) if (program.parent / name).is_file()]


def _counted(program: Program, seen: Preprocessing) -> int:
    """How many logits a program gives for black pictures of its size."""
    black = (-np.array(seen.mean) / np.array(seen.std)).astype(np.float32)  # (C,)
    shape = (2, seen.channels, seen.height, seen.width)
    try:
        return program.logits(np.broadcast_to(black[:, None, None], shape)).shape[1]
    except XciteError as error:
        raise XciteError(
            f"{error}; if it takes another size set distill.teacher_size, if one batch alone save "
            "it for any"
        ) from error


def _shape(takes: Sequence[int | None]) -> str:
    return f"({', '.join('any' if n is None else str(n) for n in takes)})"


def _given(recipe: Recipe) -> Preprocessing | None:
    """Mean and std as the recipe gives them."""
    mean, std = recipe.distill.teacher_mean, recipe.distill.teacher_std
    if mean is None or std is None:
        return None
    return Preprocessing(size=recipe.preprocessing.size, mean=mean, std=std)


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
