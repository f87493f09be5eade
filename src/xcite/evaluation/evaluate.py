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


def validation_line(epoch: int, accuracy: Accuracy, *, ema: bool = False) -> str:
    """The line that PASSL's users know; ``epoch`` is counted from 1."""
    who = "EMA " if ema else ""
    return f"Validate {who}Epoch [{epoch}] acc1 ({accuracy.top1:.3f}), acc5 ({accuracy.top5:.3f})"
