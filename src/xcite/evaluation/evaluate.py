"""Evaluation of whatever gives logits: an engine, its moving average, or an exported bundle."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from xcite.data.batch import Batch
from xcite.data.transforms import normalise
from xcite.evaluation.accuracy import Accuracy, Counter
from xcite.preprocessing import Preprocessing
from xcite.runtime.classifier import Classifier


def evaluate(
    classifiers: Mapping[str, Classifier],
    batches: Iterable[Batch],
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    *,
    present: np.ndarray | None = None,
    accepted: Sequence[np.ndarray] | None = None,
    average: Callable[[np.ndarray], np.ndarray] | None = None,
    processes: int = 1,
    after_batch: Callable[[int], None] = lambda pictures: None,
) -> dict[str, Accuracy]:
    """Show every picture once to each classifier.

    Args:
        batches: what `xcite.data.pipeline.EvaluationLoader` yields.
        class_names: what the labels mean.
        present: int64, the classes of which there are pictures; None for all.
        accepted: for each picture, by its place in the source, the classes int64 (n,) that are
            right; None where the label alone is. Of several, the one that a model ranks highest
            counts as its label, so a picture is recognised when any of them comes first.
        average: mean over processes, when each of ``processes`` sees a part of the pictures.
        after_batch: called with the number of pictures just done.
    """
    counters = {name: Counter(class_names, present) for name in classifiers}
    for batch in batches:
        images = normalise(batch.pictures, preprocessing)
        for name, classifier in classifiers.items():
            logits, labels = classifier.logits(images), batch.labels
            if accepted is not None:
                right = [accepted[index] for index in batch.views[:, 0].tolist()]
                labels = highest(logits, right)
            counters[name].add(logits, labels)
        after_batch(len(batch.labels))
    return {name: counter.result(average, processes) for name, counter in counters.items()}


def highest(logits: np.ndarray, accepted: Sequence[np.ndarray]) -> np.ndarray:
    """Of each row's accepted classes the one with the largest logit, int64 (B,).

    Args:
        logits: (B, K).
        accepted: B arrays int64 of at least one class.
    """
    best = [classes[row[classes].argmax()] for row, classes in zip(logits, accepted, strict=True)]
    return np.array(best, np.int64)


def validation_line(epoch: int, accuracy: Accuracy, *, ema: bool = False) -> str:
    """The line that PASSL's users know; ``epoch`` is counted from 1."""
    who = "EMA " if ema else ""
    return f"Validate {who}Epoch [{epoch}] acc1 ({accuracy.top1:.3f}), acc5 ({accuracy.top5:.3f})"
