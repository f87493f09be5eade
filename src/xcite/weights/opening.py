"""Open any weights file as canonical arrays; write Xcite's own files."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from xcite import canonical
from xcite.errors import XciteError
from xcite.families import FAMILIES, Architecture
from xcite.variants import published
from xcite.weights import catalog, dialects
from xcite.weights.containers import Contents, State, read_contents
from xcite.weights.imagenet import imagenet_classes
from xcite.weights.metadata import Metadata, metadata_from_json
from xcite.weights.recognition import architecture_of, variant_of
from xcite.weights.safetensors_files import write_safetensors
from xcite.weights.stored import StoredTensor

METADATA_KEY = "xcite"
PARTS = ("weights", "ema", "student", "teacher")


@dataclass
class WeightFile:
    """The contents of a weights file in canonical form.

    Attributes:
        tensors: canonical name to float32 array (BatchNorm's counters are int64); an array may be
            a transposed view of what the file holds.
        architecture: as given, as the metadata says, or as read from the shapes.
        dialect: the ecosystem whose names the file uses.
        metadata: the file's own, or what its name and shapes tell.
        part: which model of the file this is: "weights", "ema", "student" or "teacher".
        parts: the models the file holds.
        missing: head tensors left out because of ``reset_head``; the model keeps its own.
    """

    tensors: canonical.Weights
    architecture: Architecture
    dialect: str
    metadata: Metadata
    part: str = "weights"
    parts: tuple[str, ...] = ("weights",)
    missing: list[str] = field(default_factory=list)


def save_weights(path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Metadata) -> None:
    """Write canonical arrays and metadata as Xcite safetensors, whole or not at all.

    Raises:
        XciteError: the folder cannot be written, or the tensors do not fit the architecture that
            the metadata describe.
    """
    architecture = metadata.described_architecture()
    if architecture is not None:
        canonical.check(tensors, architecture)
    write_safetensors(Path(path), tensors, {METADATA_KEY: metadata.as_json()})


def open_weights(
    source: str | Path,
    *,
    architecture: Architecture | None = None,
    dialect: str | None = None,
    part: str | None = None,
    reset_head: bool = False,
    adapt_channels: bool = False,
    weights_dir: str | Path | None = None,
) -> WeightFile:
    """Read weights as canonical arrays; nothing in the file is executed.

    Args:
        source: a weights file, a published name, or a run folder (its best.safetensors, else
            last.safetensors).
        architecture: the model the weights are for; None reads it from the file.
        dialect: names to expect; None recognises them.
        part: which model of a checkpoint: "weights", "ema", "student" or "teacher"; None takes the
            student of a distillation checkpoint, else the weights.
        reset_head: leave out the head, whatever its class count; without it another class count
            is refused.
        adapt_channels: fit the first convolution to the model's number of input channels.
        weights_dir: where published files lie; None uses the cache.

    Raises:
        XciteError: unreadable or hostile file, or tensors that do not fit, all of them named.
    """
    path = locate(source, weights_dir=weights_dir)
    contents = read_contents(path)
    part = choose_part(contents, part, path)
    model = identify(path, contents, part, dialect)
    wanted = architecture or model.architecture
    metadata = model.metadata
    parts = tuple(contents.parts)
    if part == "student" and "teacher" in parts:
        contents.notes.append("a distillation checkpoint: the student was taken")
    metadata.provenance |= {"part": part} | ({"notes": contents.notes} if contents.notes else {})

    _same_model(model, wanted, path)
    stored, missing = _fit_head(model.stored, wanted, reset_head=reset_head, path=path)
    stored = _fit_channels(stored, wanted, adapt=adapt_channels, path=path)
    headless = replace(wanted, num_classes=0) if missing else wanted
    try:
        canonical.check(cast("dict[str, Any]", stored), headless)
        _check_types(stored)
    except XciteError as error:
        raise XciteError(f"{path} ({model.dialect}): {error}") from error
    if (
        architecture is not None
        and metadata.class_names is not None
        and (missing or not wanted.num_classes)
    ):
        metadata.class_names = None  # the names belong to the head that was left out
    metadata.architecture = Metadata(architecture=wanted).architecture

    # Each array is released once it is laid out anew, so only one tensor at a time is in memory
    # twice.
    dialect = model.dialect
    del contents, model
    tensors = {}
    for name, shape in canonical.shapes(headless).items():
        tensor = stored.pop(name, None)
        if name.endswith("num_batches_tracked"):
            # Paddle has no such counters, and an average may have made floats of them.
            count = np.zeros(shape) if tensor is None else tensor.read()
            tensors[name] = count.reshape(shape).astype(np.int64, copy=False)
        else:
            assert tensor is not None  # `check` has found it
            tensors[name] = tensor.read().reshape(shape)
    return WeightFile(tensors, wanted, dialect, metadata, part, parts, missing)


def locate(source: str | Path, *, weights_dir: str | Path | None = None) -> Path:
    """The file meant by a path, a run folder or a published name (fetched if need be)."""
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        for name in ("best.safetensors", "last.safetensors"):
            if (path / name).is_file():
                return path / name
        raise XciteError(f"{path} holds neither best.safetensors nor last.safetensors")
    if path.is_file():
        return path
    if isinstance(source, str) and not path.suffix and len(path.parts) == 1:
        return catalog.obtain(catalog.find(source), weights_dir=weights_dir)
    raise XciteError(f"there is no weights file {path}")


def _check_types(stored: State) -> None:
    """Refuse weights stored as integers: no program stores a model that way."""
    wrong = [
        name
        for name, tensor in stored.items()
        if "float" not in tensor.dtype and not name.endswith("num_batches_tracked")
    ]
    if wrong:
        raise XciteError(f"the weights hold integers: {', '.join(wrong[:6])}")


@dataclass
class Identified:
    """One part of a file under canonical names, nothing read yet."""

    stored: State
    architecture: Architecture
    dialect: str
    metadata: Metadata
    assumed: tuple[str, ...]


def choose_part(contents: Contents, part: str | None, path: Path) -> str:
    """The name of the part to take."""
    if part is None:
        return next(name for name in ("student", *PARTS) if name in contents.parts)
    part = "weights" if part == "model" else part
    if part not in contents.parts:
        raise XciteError(f"{path} has no part {part!r}; it holds {', '.join(contents.parts)}")
    return part


def identify(path: Path, contents: Contents, part: str, dialect: str | None = None) -> Identified:
    """Recognise dialect and model of one part from names, shapes and metadata.

    Raises:
        XciteError: unknown names, or a model that cannot be read from them.
    """
    state = contents.parts[part]
    known = dialects.recognise(state)
    if known is None:
        families = " or ".join(family.title for family in FAMILIES.values())
        names = ", ".join(name[:60] for name in list(state)[:4])
        raise XciteError(f"{path} holds no {families} that we know; it begins with {names!a}")
    kind = known[1]
    if dialect is None:
        dialect = known[0]
    elif dialect not in dialects.TABLES[kind]:
        raise XciteError(
            f"unknown dialect {dialect!r}; choose one of {', '.join(dialects.TABLES[kind])}"
        )
    own = contents.texts.get(METADATA_KEY)
    if own is not None or (contents.container == "safetensors" and len(contents.parts) > 1):
        dialect = "xcite"
    stored = dialects.translate(state, dialect, kind)
    metadata = metadata_from_json(own or "{}", str(path))
    described = metadata.described_architecture()
    try:
        architecture = described or architecture_of({n: t.shape for n, t in stored.items()})
    except XciteError as error:
        raise XciteError(f"{path} ({dialect}): {error}") from error
    assumed: tuple[str, ...] = ()
    if described is None:
        variant = variant_of(architecture, path.name.rsplit(".", 1)[0])
        metadata = _metadata_from_outside(architecture, variant)
        assumed = architecture.unreadable if variant is None else ()
    if own is None:
        metadata.provenance = {
            "source": path.name,
            "dialect": dialect,
            **({"assumed": list(assumed)} if assumed else {}),
        }
    return Identified(stored, architecture, dialect, metadata, assumed)


def recognise_weights(source: str | Path, *, dialect: str | None = None) -> Identified:
    """Which model a file of `open_weights` holds; its tensors are not read.

    Raises:
        XciteError: unreadable or hostile file, or no model that we know.
    """
    path = locate(source)
    contents = read_contents(path)
    return identify(path, contents, choose_part(contents, None, path), dialect)


def _metadata_from_outside(architecture: Architecture, variant: str | None) -> Metadata:
    """What the name and the shapes of a published model imply."""
    preprocessing = None
    if architecture.in_chans == 3 and variant is not None:
        sizes = {row.name: row.resolution for row in published()}
        usual = architecture.preprocessing
        preprocessing = usual.model_copy(update={"size": sizes.get(variant, usual.size)})
    return Metadata(
        variant=variant,
        architecture=architecture,
        class_names=imagenet_classes() if architecture.num_classes == 1000 else None,
        preprocessing=preprocessing,
    )


def _same_model(model: Identified, wanted: Architecture, path: Path) -> None:
    found = model.architecture
    if found.kind != wanted.kind:
        raise XciteError(f"{path} holds {found.with_article}, the model is {wanted.with_article}")
    told = model.dialect == "xcite" and not model.assumed
    for name in wanted.answering if told else ():
        theirs, ours = getattr(found, name), getattr(wanted, name)
        if theirs != ours:
            raise XciteError(
                f"{path} was trained with {name}={theirs}, the model has {ours}: "
                "the same weights would give other logits"
            )


def _fit_head(
    stored: State, wanted: Architecture, *, reset_head: bool, path: Path
) -> tuple[State, list[str]]:
    """Check the class counts; with ``reset_head`` the head is left out and listed."""
    prefix = wanted.head
    head = {name: tensor for name, tensor in stored.items() if name.startswith(prefix)}
    weight = head.get(f"{prefix}weight")
    classes = weight.shape[0] if weight is not None and weight.shape else 0
    if classes == wanted.num_classes and not (reset_head and head):
        return stored, []
    if not reset_head:
        has = f"a head of {classes} classes" if head else "no classification head"
        raise XciteError(
            f"{path} has {has}, the model has {wanted.num_classes}; with reset_head "
            "(init.reset_head in a recipe) all else is loaded and the model keeps its own head"
        )
    rest = {name: tensor for name, tensor in stored.items() if name not in head}
    return rest, [f"{prefix}weight", f"{prefix}bias"] if wanted.num_classes else []


def _fit_channels(stored: State, wanted: Architecture, *, adapt: bool, path: Path) -> State:
    """Check the input channels; with ``adapt`` fit the first convolution.

    To one channel the kernels are summed: a grey picture then answers as its RGB copy did. To more,
    they are repeated and scaled, so that equal channels keep the sum.
    """
    name = wanted.first_convolution
    first = stored.get(name)
    if first is None or len(first.shape) != 4 or first.shape[1] == wanted.in_chans:
        return stored
    present = first.shape[1]
    if not adapt:
        raise XciteError(
            f"{path} takes {present} input channels, the model {wanted.in_chans}; with "
            "adapt_channels (init.adapt_channels in a recipe) the first convolution is fitted"
        )
    kernel: StoredTensor = first

    def read() -> np.ndarray:
        values = kernel.read().astype(np.float64)  # (out, present, 3, 3)
        if wanted.in_chans == 1:
            return values.sum(axis=1, keepdims=True).astype(np.float32)
        order = np.arange(wanted.in_chans) % present
        return (values[:, order] * (present / wanted.in_chans)).astype(np.float32)

    shape = (first.shape[0], wanted.in_chans, *first.shape[2:])
    return {**stored, name: StoredTensor(shape, "float32", read)}
