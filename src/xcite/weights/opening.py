"""Open any weights file as canonical arrays; write Xcite's own files."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from xcite import canonical
from xcite.errors import XciteError
from xcite.families import Architecture
from xcite.weights import catalog
from xcite.weights.containers import METADATA_KEY, State, listed, read_contents
from xcite.weights.distributed_files import distributed_below, distributed_folder, is_part
from xcite.weights.hub_config import WEIGHT_NAMES
from xcite.weights.identification import Identified, choose_part, identify
from xcite.weights.metadata import Metadata
from xcite.weights.safetensors_files import write_safetensors
from xcite.weights.shards import is_shard
from xcite.weights.stored import StoredTensor

_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".pdparams", ".pd")


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
    strict: bool = False,
    weights_dir: str | Path | None = None,
) -> WeightFile:
    """Read weights as canonical arrays; nothing in the file is executed.

    Args:
        source: a weights file, one shard or the index of several, a published name, a run folder
            (its best.safetensors, else last.safetensors), a folder as Hugging Face's programs
            write it, or one of `torch.distributed.checkpoint` (or with one such folder in it).
        architecture: the model the weights are for; None reads it from the file.
        dialect: names to expect; None recognises them.
        part: which model of a checkpoint: "weights", "ema", "student" or "teacher", or another that
            it holds; None takes the student of a distillation checkpoint, else the weights.
        reset_head: leave out the head, whatever its class count; without it another class count
            is refused.
        adapt_channels: fit the first convolution to the model's number of input channels.
        strict: refuse tensors that belong to no model (a loss, a metric), which are otherwise named
            in the notes and left aside.
        weights_dir: where published files lie; None uses the cache.

    Raises:
        XciteError: unreadable or hostile file, or tensors that do not fit, all of them named.
    """
    path = locate(source, weights_dir=weights_dir)
    contents = read_contents(path)
    part = choose_part(contents, part, path)
    model = identify(path, contents, part, dialect)
    if strict and model.aside:
        raise XciteError(
            f"{path} holds tensors that are not the model's: {listed(model.aside)}; without strict "
            "they are left aside"
        )
    wanted = architecture or model.architecture
    metadata = model.metadata
    parts = tuple(contents.parts)
    if part == "student" and "teacher" in parts:
        contents.notes.append("a distillation checkpoint: the student was taken")
    notes = [*contents.notes, *model.notes]
    metadata.provenance |= {"part": part} | ({"notes": notes} if notes else {})

    _same_model(model, wanted, path)
    stored, missing = _fit_head(model.stored, wanted, reset_head=reset_head, path=path)
    stored = _fit_channels(stored, wanted, adapt=adapt_channels, path=path)
    headless = replace(wanted, num_classes=0) if missing else wanted
    try:
        _check_types(stored)
        canonical.check(cast("dict[str, Any]", stored), headless)
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
    dialect, unpacked = model.dialect, contents.unpacked  # a temporary copy stays until the end
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
    unpacked.clear()
    return WeightFile(tensors, wanted, dialect, metadata, part, parts, missing)


def locate(source: str | Path, *, weights_dir: str | Path | None = None) -> Path:
    """The file meant by a path, a folder or a published name (fetched if need be).

    Of a distributed checkpoint it is the folder.
    """
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        return (distributed_folder(path.parent) if is_part(path) else None) or path
    if isinstance(source, str) and not path.suffix and len(path.parts) == 1:
        return catalog.obtain(catalog.find(source), weights_dir=weights_dir)
    raise XciteError(f"there is no weights file {path}")


def _in_folder(folder: Path) -> Path:
    """The weights file of a run, or of a folder of Hugging Face's programs."""
    for name in ("best.safetensors", "last.safetensors", *WEIGHT_NAMES):
        if (folder / name).is_file():
            return folder / name
    files = sorted(file for file in folder.iterdir() if is_shard(file))
    if files:
        return files[0]
    distributed = distributed_folder(folder) or distributed_below(folder)
    if distributed is not None:
        return distributed
    if (folder / "saved_model.pb").is_file():
        raise XciteError(f"{folder} is a program of TensorFlow; save its weights as .safetensors")
    single = [file for file in folder.iterdir() if file.suffix in _SUFFIXES and file.is_file()]
    if len(single) == 1:
        return single[0]
    raise XciteError(
        f"{folder} holds neither best.safetensors nor last.safetensors, as a run does, nor "
        "model.safetensors or pytorch_model.bin; name the weights file itself"
    )


def _check_types(stored: State) -> None:
    """Refuse what is no float: no program stores a model as integers."""
    wrong = [
        f"{name} is of type {tensor.dtype}"
        for name, tensor in stored.items()
        if "float" not in tensor.dtype and not name.endswith("num_batches_tracked")
    ]
    if wrong:
        raise XciteError(f"weights are floating-point numbers, but {listed(wrong)}")


def recognise_weights(source: str | Path, *, dialect: str | None = None) -> Identified:
    """Which model a file of `open_weights` holds; its tensors are not read.

    Raises:
        XciteError: unreadable or hostile file, or no model that we know.
    """
    path = locate(source)
    contents = read_contents(path)
    return identify(path, contents, choose_part(contents, None, path), dialect)


def _same_model(model: Identified, wanted: Architecture, path: Path) -> None:
    found = model.architecture
    if found.kind != wanted.kind:
        raise XciteError(f"{path} holds {found.with_article}, the model is {wanted.with_article}")
    told = model.dialect == "xcite" and not model.assumed
    for name in wanted.answering:
        theirs, ours = getattr(found, name), getattr(wanted, name)
        # Strides other than the usual ones are never assumed: a name or a normalisation told them.
        if theirs != ours and (told or (name == "stem_strides" and theirs is not None)):
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
