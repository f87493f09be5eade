"""A frozen network that is asked for every batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xcite.data.batch import Batch
from xcite.engines import create_engine
from xcite.engines.interface import Engine
from xcite.engines.pixels import model_input
from xcite.engines.staging import Staged
from xcite.errors import XciteError, naming
from xcite.preprocessing import Preprocessing, Size, sides
from xcite.recipe import Recipe
from xcite.runtime.classes import match_classes
from xcite.training.teachers.facts import is_program, network_facts, program_facts

Predict = Callable[[np.ndarray], np.ndarray]


class LiveTeacher:
    """A frozen network that is asked for every batch.

    Attributes:
        predict: logits float32 (B, K'), or features, of images in the teacher's normalisation and
            size.
        outputs: how many there are of what the student learns, of a picture.
        class_names: what the outputs mean; None for features, or where nobody says.
    """

    def __init__(
        self,
        predict: Predict,
        *,
        student: Preprocessing,
        own: Preprocessing,
        classes: int,
        columns: np.ndarray | None,
        hard: bool,
        identity: Mapping[str, Any],
        class_names: Sequence[str] | None = None,
        notes: Sequence[str] = (),
        engine: Engine | None = None,
        features: bool = False,
    ) -> None:
        """Args:
        student: the preprocessing the student is trained with.
        own: mean, std and input side that the teacher expects.
        classes: number of the teacher's logits, or features.
        columns: the teacher's class for each of the student's; None when they are the same.
        hard: answer with classes instead of logits.
        engine: what ``predict`` runs on, where that is the student's framework, too.
        features: whether features are asked for.
        """
        self.predict = predict
        self.notes = list(notes)
        self.outputs = classes if columns is None else len(columns)
        self.class_names = list(class_names) if class_names else None
        self._student = student
        self._own = own
        self._classes = classes
        self._columns = columns
        self._hard = hard
        self._identity = dict(identity)
        self._engine = engine
        self._features = features

    def answers(self, batch: Batch, staged: Staged | None = None) -> Any:
        engine = self._engine
        if staged is None or engine is None or not engine.asynchronous:
            logits: Any = self.logits(batch)
        else:  # beside the student on its device; nobody waits for the answers
            images = self._as_seen_by_the_teacher(staged.images, engine.tensor)
            logits = engine.forward(images, features=self._features)
            if self._columns is not None:
                logits = logits[:, engine.tensor(self._columns)]
        return logits.argmax(1) if self._hard else logits

    def _as_seen_by_the_teacher(self, images: Any, tensor: Callable[[np.ndarray], Any]) -> Any:
        """Images (B, C, H, W) in the teacher's normalisation and size.

        Args:
            tensor: makes the kind of array that the images are.
        """
        images = renormalise(images, self._student, self._own, tensor)
        return resize(images, self._own.size, tensor)

    def logits(self, batch: Batch) -> np.ndarray:
        """float32 (B, K) for the student's classes, or in the space that the recipe names."""
        images = self._as_seen_by_the_teacher(model_input(batch, self._student), np.asarray)
        logits = np.asarray(self.predict(images), np.float32)  # (B, K')
        if logits.shape != (len(batch), self._classes):
            raise XciteError(
                f"teacher {self._identity['name']} gives {logits.shape} for {len(batch)} pictures; "
                f"expected {self._classes} numbers each"
            )
        if self._columns is not None:
            logits = logits[:, self._columns]  # (B, K)
        return logits

    def identity(self) -> dict[str, Any]:
        return dict(self._identity)

    def data_epoch(self, epoch: int) -> int:
        return epoch


def live_teacher(recipe: Recipe, class_names: Sequence[str]) -> LiveTeacher:
    """The network that ``recipe.distill.teacher`` names, ready to run.

    Args:
        class_names: the student's classes, in the order of its logits.

    Raises:
        XciteError: unreadable teacher, or classes or channels that do not match.
    """
    path, question = recipe.distill.teacher, recipe.distill.question
    assert question is not None
    if not path:
        raise XciteError("distill.teacher is empty; give a weights file, a run folder or a program")
    predict: Predict
    beside: Engine | None = None
    features = question.answers == "features"
    with naming(path, f"teacher {path}"):
        if is_program(path):
            known, program = program_facts(path, recipe)
            runs_on, predict = program.name, program.logits
        else:
            known, architecture, tensors = network_facts(path, recipe, class_names)
            runs_on = recipe.distill.teacher_engine or recipe.run.engine
            same = runs_on == recipe.run.engine
            precision = recipe.run.precision if same else "auto"  # an engine may lack the other's
            engine = create_engine(runs_on, architecture, precision=precision)
            engine.load_weights(tensors)
            predict = engine.features if features else engine.predict
            beside = engine if same else None
        outputs = known.outputs(recipe.distill.space)
    columns, note, names = None, None, None
    if recipe.distill.space == "teacher-classes":
        names = known.class_names
    elif recipe.distill.space == "classes":
        names = list(class_names)
        columns, note = match_classes(
            known.class_names,
            class_names,
            count=known.classes,
            model=f"teacher {path}",
            data="the student",
        )
    return LiveTeacher(
        predict,
        student=recipe.preprocessing,
        own=known.preprocessing,
        classes=outputs,
        columns=columns,
        hard=question.answers == "classes",
        identity=known.identity() | {"engine": runs_on},
        class_names=names,
        notes=[*known.notes, *([note] if note else [])],
        engine=beside,
        features=features,
    )


def renormalise(
    images: Any,
    given: Preprocessing,
    wanted: Preprocessing,
    tensor: Callable[[np.ndarray], Any] = np.asarray,
) -> Any:
    """Images (B, C, H, W) from one mean and std to another; the same array where they agree.

    Args:
        tensor: makes the kind of array that the images are, NumPy's or a framework's.
    """
    if given.mean == wanted.mean and given.std == wanted.std:
        return images
    mean, std = np.array(given.mean), np.array(given.std)
    other_mean, other_std = np.array(wanted.mean), np.array(wanted.std)
    scale = (std / other_std).astype(np.float32)[:, None, None]
    shift = ((mean - other_mean) / other_std).astype(np.float32)[:, None, None]
    return images * tensor(scale) + tensor(shift)


def resize(images: Any, size: Size, tensor: Callable[[np.ndarray], Any] = np.asarray) -> Any:
    """Images (B, C, H, W) in another size, bilinear and antialiased.

    The filter is Pillow's BILINEAR (and PyTorch's with antialias=True): a triangle as wide as the
    reduction, or of one pixel when enlarging, with borders renormalised.
    """
    given, (height, width) = tuple(images.shape[2:]), sides(size)
    if given == (height, width):
        return images
    rows, columns = _triangle(given[0], height), _triangle(given[1], width)
    return tensor(rows) @ images @ tensor(columns.T)


def _triangle(given: int, wanted: int) -> np.ndarray:
    """float32 (wanted, given): the share of each input pixel in each output pixel."""
    scale = given / wanted
    support = max(scale, 1.0)
    centres = (np.arange(wanted) + 0.5) * scale
    distance = np.abs(np.arange(given) + 0.5 - centres[:, None]) / support
    share = np.maximum(1.0 - distance, 0.0)
    return (share / share.sum(1, keepdims=True)).astype(np.float32)
