"""A side in files, for ports that run elsewhere.

    weights.safetensors     the weights (or weights.* in any dialect that `xcite inspect` reads)
    inputs.npz              "images" float32 (B, C, H, W), normalised; "labels" int64 (B,)
    activations.npz         evaluation mode: "patch_embed" (B, N, D), "pos_embeder", "blocks.0",
                            ..., "cls_token" (B, 1 + N, D), "cls_attn_blocks.0", ..., "norm",
                            "head" (B, K); RegNet: "stem", "s1.b1" (B, C, H, W), ..., "head"
    activations_train.npz   the same with the batch's own statistics
    gradients.npz           by canonical parameter name, of the mean cross entropy with the labels,
                            in training mode without drop path; also "loss", a scalar

Each of the last three files may be missing, and may name some of the tensors only.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from xcite.alignment.comparison import Report, compare
from xcite.alignment.measuring import Arrays, Measured, Side, measure_pass
from xcite.alignment.trial import Trial
from xcite.engines.interface import Engine
from xcite.engines.pixels import model_input
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.recipe_sections import DistillRecipe, OptimRecipe
from xcite.variants import Architecture
from xcite.weights import Metadata, open_weights, save_weights
from xcite.whole_files import whole_file

_DUMP_LIMIT = 8 * 2**30  # bytes an .npz may unfold to


def write_dump(side: Side, given: Trial, folder: Path) -> None:
    """Compute what a dump holds, from the first batch of a trial, and write it.

    Raises:
        XciteError: the engine is not installed, or the folder cannot be written.
    """
    engine = side.create(given)
    images, labels = model_input(given.batches[0], given.preprocessing), given.batches[0].labels
    metadata = Metadata(architecture=given.architecture.fields())
    save_weights(folder / "weights.safetensors", given.weights, metadata)
    _write_npz(folder / "inputs.npz", {"images": images, "labels": labels})
    found = _measure(side, engine, images, labels)
    _write_npz(folder / "activations.npz", found.activations)
    _write_npz(folder / "activations_train.npz", found.activations_train)
    _write_npz(folder / "gradients.npz", {**found.gradients, "loss": np.array(found.loss)})


def compare_with_dump(side: Side, given: Trial, folder: Path, model: str) -> Report:
    """Run a side on a dump's inputs and weights and compare with what the dump holds.

    Args:
        given: what the model is built from; its weights and batches are not used.

    Raises:
        XciteError: files missing, damaged, or with names that the model does not have.
    """
    images, labels = _inputs(_read_npz(folder / "inputs.npz"), given.architecture, folder)
    theirs = _read(folder)
    found = sorted(folder.glob("weights.*"))
    if len(found) != 1:
        raise XciteError(f"{folder} needs one weights.* file and has {len(found)}")
    weights = open_weights(found[0], architecture=given.architecture).tensors
    engine = side.create(replace(given, weights=weights))
    ours = _measure(side, engine, images, labels)
    notes = []
    for what, file, known, held in (
        ("activations", "activations.npz", ours.activations, theirs.activations),
        (
            "activations in training mode",
            "activations_train.npz",
            ours.activations_train,
            theirs.activations_train,
        ),
        ("gradients", "gradients.npz", ours.gradients, theirs.gradients),
    ):
        unknown = [name for name in held if name not in known]
        if unknown:
            raise XciteError(
                f"{folder / file} holds {', '.join(unknown[:5])}, which the model does not have; "
                f"its names are {', '.join(list(known)[:5])}, ..."
            )
        if len(held) < len(known):
            left_out = len(known) - len(held)
            notes.append(f"the reference leaves out {left_out} of {len(known)} {what}")
    return compare(model, ours, theirs, notes)


def _measure(side: Side, engine: Engine, images: np.ndarray, labels: np.ndarray) -> Measured:
    """Activations and gradients; the loss is plain mean cross entropy."""
    channels, classes = images.shape[1], engine.architecture.num_classes
    # The images are normalised already, so this preprocessing is not used.
    given = Preprocessing(size=images.shape[2:], mean=(0.0,) * channels, std=(1.0,) * channels)
    engine.start_training(OptimRecipe(batch=len(images)), DistillRecipe(), given)
    return measure_pass(side.name, engine, images, np.eye(classes, dtype=np.float32)[labels])


def _read(folder: Path) -> Measured:
    """What the dump holds of what can be compared."""
    gradients = _read_npz(folder / "gradients.npz", optional=True)
    loss = gradients.pop("loss", None)
    return Measured(
        "reference",
        _read_npz(folder / "activations.npz", optional=True),
        _read_npz(folder / "activations_train.npz", optional=True),
        float(loss) if loss is not None and loss.size == 1 else None,
        gradients,
    )


def _inputs(
    inputs: Arrays, architecture: Architecture, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    images, labels = inputs.get("images"), inputs.get("labels")
    where = folder / "inputs.npz"
    if images is None or labels is None:
        raise XciteError(f"{where} must hold 'images' (B, C, H, W) and 'labels' (B,)")
    if images.ndim != 4 or images.shape[1] != architecture.in_chans or images.dtype.kind != "f":
        raise XciteError(
            f"{where}: images are {images.dtype} {images.shape}; expected float32 "
            f"(B, {architecture.in_chans}, H, W)"
        )
    in_range = labels.shape == (len(images),) and labels.dtype.kind in "iu"
    if not in_range or labels.min() < 0 or labels.max() >= architecture.num_classes:
        raise XciteError(
            f"{where}: labels must be {len(images)} class numbers below {architecture.num_classes}"
        )
    return images.astype(np.float32), labels.astype(np.int64)


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with whole_file(path) as aside, aside.open("wb") as stream:
        np.savez(stream, **dict(arrays))  # type: ignore[arg-type]


def _read_npz(path: Path, *, optional: bool = False) -> Arrays:
    """Arrays of an .npz; pickled objects are refused, and so is a file that unfolds too far."""
    if optional and not path.is_file():
        return {}
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _DUMP_LIMIT:
                raise XciteError(f"{path} unfolds to more than {_DUMP_LIMIT / 2**30:.0f} GiB")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise XciteError(f"there is no {path}; `xcite align --help` names the files") from error
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, MemoryError) as error:
        raise XciteError(f"{path} cannot be read: {error}") from error
