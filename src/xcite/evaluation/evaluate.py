"""Evaluation of whatever gives logits: an engine, its moving average, or an exported bundle."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from xcite.data.batch import Batch
from xcite.data.transforms import normalise
from xcite.engines.interface import Engine
from xcite.errors import XciteError
from xcite.evaluation.accuracy import Accuracy, Counter
from xcite.preprocessing import Preprocessing
from xcite.weights.opening import imagenet_classes


class Classifier(Protocol):
    """What evaluation and prediction need of a model."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """float32 (B, K) of normalised float32 images (B, C, H, W)."""


class EngineClassifier:
    """An engine's model, or its moving average, as a `Classifier`."""

    def __init__(self, engine: Engine, *, ema: bool = False) -> None:
        self.engine = engine
        self.ema = ema

    def logits(self, images: np.ndarray) -> np.ndarray:
        return self.engine.predict(images, ema=self.ema)


def evaluate(
    classifiers: Mapping[str, Classifier],
    batches: Iterable[Batch],
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    *,
    average: Callable[[np.ndarray], np.ndarray] | None = None,
    processes: int = 1,
    after_batch: Callable[[int], None] = lambda pictures: None,
) -> dict[str, Accuracy]:
    """Show every picture once to each classifier.

    Args:
        batches: what `xcite.data.pipeline.EvaluationLoader` yields.
        class_names: what the labels mean.
        average: mean over processes, when each of ``processes`` sees a part of the pictures.
        after_batch: called with the number of pictures just done.
    """
    counters = {name: Counter(class_names) for name in classifiers}
    for batch in batches:
        images = normalise(batch.pictures, preprocessing)
        for name, classifier in classifiers.items():
            counters[name].add(classifier.logits(images), batch.labels)
        after_batch(len(batch.labels))
    return {name: counter.result(average, processes) for name, counter in counters.items()}


def same_in_order(model: Sequence[str], data: Sequence[str]) -> bool:
    """Whether the data's classes are the model's in the same order, maybe under other names.

    So are ImageNet's folders n01440764 to n15075141 beside the names of its classes, and the bare
    numbers of a list file beside any names.
    """
    if list(model) == list(data):
        return True
    if len(model) != len(data):
        return False
    if list(data) == [str(number) for number in range(len(data))]:
        return True
    folders = list(data) == sorted(data) and all(re.fullmatch(r"n\d{8}", name) for name in data)
    return folders and list(model) == imagenet_classes()


def match_classes(model: Sequence[str], data: Sequence[str], what: str = "the data") -> np.ndarray:
    """Which class of the model each class of the data is, by name: int64 (len(data),).

    Raises:
        XciteError: with both lists, when one has a class that the other lacks.
    """
    position = {name: index for index, name in enumerate(model)}
    if set(model) != set(data):
        only_data = [name for name in data if name not in position]
        only_model = [name for name in model if name not in set(data)]
        details = "; ".join(
            f"only {who}: {brief(names)}"
            for who, names in (("there", only_data), ("in the model", only_model))
            if names
        )
        raise XciteError(
            f"the classes of {what} are not those of the model ({details}); "
            f"{what}: {brief(data)}; model: {brief(model)}"
        )
    return np.array([position[name] for name in data], np.int64)


def brief(names: Sequence[str], most: int = 12) -> str:
    """A list for a message: the first names and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def validation_line(epoch: int, accuracy: Accuracy, *, ema: bool = False) -> str:
    """The line that PASSL's users know; ``epoch`` is counted from 1."""
    who = "EMA " if ema else ""
    return f"Validate {who}Epoch [{epoch}] acc1 ({accuracy.top1:.3f}), acc5 ({accuracy.top5:.3f})"
