"""Teachers: whoever answers for the pictures of a batch while a student learns.

A live teacher is an engine (RegNet or XCiT, always in evaluation mode) or an ONNX or OpenVINO file.
It sees the student's own input, augmented, erased and mixed, in its own normalisation and size.
A cached teacher repeats answers computed once, see `xcite.training.teacher_cache`.

The pictures of a batch, and how they are mixed, are a pure function of (seed, epoch, index); so an
answer is one too, whoever gives it and whenever.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ValidationError

from xcite import canonical
from xcite.data.batch import Batch
from xcite.data.sources import Source
from xcite.engines import create_engine
from xcite.engines.interface import Engine
from xcite.engines.pixels import model_input
from xcite.errors import XciteError
from xcite.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from xcite.recipe import Recipe
from xcite.variants import Architecture, find
from xcite.weights import open_weights
from xcite.weights.opening import imagenet_classes

PROGRAMS = (".onnx", ".xml")
_DESCRIPTION_LIMIT = 16 * 2**20  # bytes of a bundle's description that are read


class Teacher(Protocol):
    """Who answers for the pictures of a batch during distillation.

    Attributes:
        notes: what a person should know, one line each.
    """

    notes: list[str]

    def answers(self, batch: Batch) -> np.ndarray:
        """Logits float32 (B, K) in the student's order of classes; classes int64 (B,) if hard."""

    def identity(self) -> dict[str, Any]:
        """What the teacher is, with the SHA-256 of its weights; goes with the student's weights."""

    def data_epoch(self, epoch: int) -> int:
        """Which epoch's pixels and mixing the student must see in its epoch ``epoch``."""


class LiveTeacher:
    """A frozen network that is asked for every batch.

    Attributes:
        predict: logits float32 (B, K') of images in the teacher's normalisation and size.
    """

    def __init__(
        self,
        predict: Callable[[np.ndarray], np.ndarray],
        *,
        student: Preprocessing,
        own: Preprocessing,
        columns: np.ndarray | None,
        hard: bool,
        identity: Mapping[str, Any],
        notes: Sequence[str] = (),
    ) -> None:
        """Args:
        student: the preprocessing the student is trained with.
        own: mean, std and input side that the teacher expects.
        columns: the teacher's class for each of the student's; None when they are the same.
        hard: answer with classes instead of logits.
        """
        self.predict = predict
        self.notes = list(notes)
        self._student = student
        self._own = own
        self._columns = columns
        self._hard = hard
        self._identity = dict(identity)

    def answers(self, batch: Batch) -> np.ndarray:
        seen = model_input(batch, self._student)  # (B, C, H, W)
        images = resize(renormalise(seen, self._student, self._own), self._own.size)
        logits = np.asarray(self.predict(images), np.float32)  # (B, K')
        if self._columns is not None:
            logits = logits[:, self._columns]  # (B, K)
        return logits.argmax(1) if self._hard else logits

    def identity(self) -> dict[str, Any]:
        return dict(self._identity)

    def data_epoch(self, epoch: int) -> int:
        return epoch


def build_teacher(
    recipe: Recipe,
    student_engine: Engine,
    class_names: Sequence[str],
    *,
    source: Source | None = None,
) -> Teacher | None:
    """The recipe's teacher: from the cache if it names one, else live; None without distillation.

    Args:
        student_engine: a live teacher runs on the same framework unless the recipe names one.
        class_names: the student's classes, in the order of its logits.
        source: the training pictures, which a cache must have been made of; opened when needed.

    Raises:
        XciteError: unreadable teacher, classes that do not match, or a cache made of other things.
    """
    if recipe.distill.loss == "none":
        return None
    if recipe.distill.cache:
        from xcite.training import plan
        from xcite.training.teacher_cache import open_cache

        source = source or plan.make(recipe, initialise=False).train
        return open_cache(recipe, source, class_names, processes=student_engine.world_size)
    return live_teacher(recipe, student_engine, class_names)


def live_teacher(recipe: Recipe, student_engine: Engine, class_names: Sequence[str]) -> LiveTeacher:
    """The network that ``recipe.distill.teacher`` names, ready to be asked.

    Raises:
        XciteError: unreadable teacher, or classes or channels that do not match.
    """
    path = recipe.distill.teacher
    if not path:
        raise XciteError("distill.teacher is empty; give a weights file, a run folder or a program")
    if Path(path).suffix.lower() in PROGRAMS:
        known = program_facts(path, recipe)
        runs_on, predict = _open_program(Path(path))
    else:
        known, architecture, tensors = network_facts(path, recipe, class_names)
        runs_on = recipe.distill.teacher_engine or student_engine.name
        engine = create_engine(runs_on, architecture, precision=recipe.run.precision)
        engine.load_weights(tensors)
        predict = engine.predict
    columns, note = match_classes(path, known.class_names, known.classes, class_names)
    return LiveTeacher(
        predict,
        student=recipe.preprocessing,
        own=known.preprocessing,
        columns=columns,
        hard=recipe.distill.loss == "hard",
        identity=known.identity() | {"engine": runs_on},
        notes=[*known.notes, *([note] if note else [])],
    )


@dataclass(frozen=True)
class Facts:
    """What is known about a teacher without running it.

    Attributes:
        sha256: of its canonical weights (whatever file they lie in) or of the program's files.
        preprocessing: its mean and std, and the side of the input it is given.
        classes: number of its logits; None when the program does not say.
        class_names: one per logit; None when the file names none.
    """

    name: str
    sha256: str
    preprocessing: Preprocessing
    classes: int | None
    class_names: list[str] | None
    notes: list[str]

    def identity(self) -> dict[str, Any]:
        """The teacher's name and hash and how it sees pictures, as plain data."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "size": self.preprocessing.size,
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
    if Path(recipe.distill.teacher).suffix.lower() in PROGRAMS:
        return program_facts(recipe.distill.teacher, recipe)
    return network_facts(recipe.distill.teacher, recipe, class_names)[0]


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
        canonical.check(file.tensors, architecture)
    own, names, notes = file.metadata.preprocessing, file.metadata.class_names, []
    if file.dialect != "xcite" and names is not None and not set(class_names) <= set(names):
        names = None  # the file itself names none: these were guessed by their number
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
        _teacher_preprocessing(path, own, recipe),
        architecture.num_classes,
        names,
        notes,
    )
    return known, architecture, file.tensors


class _Bundle(BaseModel):
    """The part of a bundle's description that a teacher needs."""

    preprocessing: Preprocessing
    class_names: list[str] = []
    size: tuple[int, int] | None = None


def program_facts(path: str, recipe: Recipe) -> Facts:
    """An .onnx or .xml file: its hash, and what a ``bundle.json`` beside it says."""
    program, notes = Path(path), []
    own, names, fixed = recipe.preprocessing, None, None
    beside = program.parent / "bundle.json"
    try:
        if beside.is_file() and beside.stat().st_size <= _DESCRIPTION_LIMIT:
            bundle = _Bundle.model_validate(json.loads(beside.read_text(encoding="utf-8")))
            own, names = bundle.preprocessing, bundle.class_names or None
            fixed = bundle.size[0] if bundle.size else None
        else:
            notes.append(f"teacher {path} has no bundle.json beside it: given the student's input")
        digest = hashlib.sha256()
        for part in (program, program.with_suffix(".bin"), Path(f"{path}.data")):
            if part == program or part.is_file():
                digest.update(part.read_bytes())
    except (OSError, ValueError, ValidationError) as error:
        raise XciteError(f"cannot read the teacher {path}: {error}") from error
    preprocessing = _teacher_preprocessing(path, own, recipe, fixed)
    return Facts(program.name, digest.hexdigest(), preprocessing, None, names, notes)


def _teacher_preprocessing(
    path: str, own: Preprocessing, recipe: Recipe, fixed: int | None = None
) -> Preprocessing:
    """The teacher's mean and std with the side of the input that it will get."""
    if own.channels != recipe.preprocessing.channels:
        raise XciteError(
            f"teacher {path} expects {own.channels} channels, the student's pictures have "
            f"{recipe.preprocessing.channels}; set preprocessing.mean and .std alike for both"
        )
    size = recipe.distill.teacher_size or fixed or recipe.preprocessing.size
    return own.model_copy(update={"size": size})


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


def match_classes(
    teacher: str, theirs: Sequence[str] | None, count: int | None, ours: Sequence[str]
) -> tuple[np.ndarray | None, str | None]:
    """The teacher's class for each of the student's, by name, and a note for people.

    A teacher may know more classes than the student: only the student's are asked for.

    Args:
        theirs: the teacher's class names; None when its file has none.
        count: number of the teacher's logits, if known.

    Returns:
        int64 (len(ours),), or None when both have the same classes in the same order.

    Raises:
        XciteError: with both lists, when a class of the student's is unknown to the teacher; or
            names are missing and the numbers differ.
    """
    if theirs is None:
        if count is not None and count != len(ours):
            raise XciteError(
                f"teacher {teacher} names no classes and has {count}, the student has "
                f"{len(ours)} ({_brief(ours)}); use a teacher trained on these classes"
            )
        return None, f"teacher {teacher} names no classes: taken to be the student's, in this order"
    if (
        len(theirs) == len(ours)
        and list(ours) == sorted(ours)
        and all(re.fullmatch(r"n\d{8}", name) for name in ours)
        and list(theirs) == imagenet_classes()
    ):
        return None, "ImageNet's folders n01440764, ... are its classes in their usual order"
    place = {name: index for index, name in enumerate(theirs)}
    unknown = [name for name in ours if name not in place]
    if unknown:
        raise XciteError(
            f"the teacher {teacher} does not know {_brief(unknown)}; its classes: "
            f"{_brief(theirs)}; the student's: {_brief(ours)}"
        )
    if list(theirs) == list(ours):
        return None, None
    note = f"of the teacher's {len(theirs)} classes the student's {len(ours)} are used"
    if len(theirs) == len(ours):
        note = "the teacher's classes are in another order and were matched by name"
    return np.array([place[name] for name in ours], np.int64), note


def _brief(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def renormalise(images: np.ndarray, given: Preprocessing, wanted: Preprocessing) -> np.ndarray:
    """Images (B, C, H, W) from one mean and std to another; the same array where they agree."""
    if given.mean == wanted.mean and given.std == wanted.std:
        return images
    mean, std = np.array(given.mean), np.array(given.std)
    other_mean, other_std = np.array(wanted.mean), np.array(wanted.std)
    scale = (std / other_std).astype(np.float32)[:, None, None]
    shift = ((mean - other_mean) / other_std).astype(np.float32)[:, None, None]
    return images * scale + shift


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Square images (B, C, S, S) as (B, C, size, size), bilinear and antialiased.

    The filter is Pillow's BILINEAR (and PyTorch's with antialias=True): a triangle as wide as the
    reduction, or of one pixel when enlarging, with borders renormalised.
    """
    height, width = images.shape[2:]
    if (height, width) == (size, size):
        return images
    rows, columns = _triangle(height, size), _triangle(width, size)
    resized: np.ndarray = rows @ images @ columns.T
    return resized


def _triangle(given: int, wanted: int) -> np.ndarray:
    """float32 (wanted, given): the share of each input pixel in each output pixel."""
    scale = given / wanted
    support = max(scale, 1.0)
    centres = (np.arange(wanted) + 0.5) * scale
    distance = np.abs(np.arange(given) + 0.5 - centres[:, None]) / support
    share = np.maximum(1.0 - distance, 0.0)
    return (share / share.sum(1, keepdims=True)).astype(np.float32)


_Predict = Callable[[np.ndarray], np.ndarray]


def _open_program(path: Path) -> tuple[str, _Predict]:
    """The installed runtime's name, and a function from images float32 (B, C, H, W) to logits."""
    try:
        import openvino
    except ImportError:
        return _open_onnxruntime(path)
    try:
        core = openvino.Core()
        model = core.read_model(path)
        # Some processors would silently compute in bfloat16; a teacher's labels should not.
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        logits = next((o for o in compiled.outputs if "logits" in o.names), compiled.output(0))
    except RuntimeError as error:
        raise XciteError(f"OpenVINO cannot read the teacher {path}: {_first(error)}") from error

    def run(images: np.ndarray) -> np.ndarray:
        try:
            return np.array(compiled(images)[logits])
        except RuntimeError as error:
            raise XciteError(
                f"the teacher {path} refuses images {images.shape}: {_first(error)}; "
                "see distill.teacher_size"
            ) from error

    return "openvino", run


def _open_onnxruntime(path: Path) -> tuple[str, _Predict]:
    try:
        import onnxruntime
    except ImportError as error:
        raise XciteError(
            f"the teacher {path} needs a runtime: pip install 'xcite[deploy]'"
        ) from error
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no base class of their own
        raise XciteError(f"ONNX Runtime cannot read the teacher {path}: {_first(error)}") from error
    names = [output.name for output in session.get_outputs()]
    logits = "logits" if "logits" in names else names[0]
    entry = session.get_inputs()[0].name

    def run(images: np.ndarray) -> np.ndarray:
        try:
            return np.asarray(session.run([logits], {entry: images})[0])
        except Exception as error:
            raise XciteError(
                f"the teacher {path} refuses images {images.shape}: {_first(error)}; "
                "see distill.teacher_size"
            ) from error

    return "onnxruntime", run


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
