"""Top-1, top-5, loss and confusion, counted in NumPy: picture by picture, nothing estimated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# A K x K table of int64 is 128 MB at this size; above it only the per-class counts are kept.
LARGEST_CONFUSION = 4096


@dataclass(frozen=True)
class Accuracy:
    """The result of an evaluation.

    Attributes:
        pictures: how many were counted.
        top1, top5: per cent of them; top5 is 100 for five classes or fewer.
        loss: mean cross-entropy against the true class.
        present: int64 (P,), the classes that answers could be about, see `Counter`; all K unless
            the data have fewer.
        top1_present, top5_present: the same shares when only those classes compete.
        class_names: K names.
        totals: int64 (K,), pictures of each class.
        correct: int64 (K,), those of them where the class itself came first.
        predicted: int64 (K,), how often each class came first.
        confusion: int64 (K, K), rows are true, columns predicted; None for very many classes.
    """

    pictures: int
    top1: float
    top5: float
    loss: float
    present: np.ndarray
    top1_present: float
    top5_present: float
    class_names: list[str]
    totals: np.ndarray
    correct: np.ndarray
    predicted: np.ndarray
    confusion: np.ndarray | None

    @property
    def absent(self) -> list[str]:
        """Names of the classes of which the data have no pictures."""
        there = np.zeros(len(self.class_names), bool)
        there[self.present] = True
        return [name for name, found in zip(self.class_names, there, strict=True) if not found]

    def per_class(self) -> list[dict[str, Any]]:
        """One row a class; recall and precision in per cent, None where undefined."""
        return [
            {
                "class": name,
                "pictures": int(total),
                "recall": 100 * int(correct) / int(total) if total else None,
                "precision": 100 * int(correct) / int(predicted) if predicted else None,
            }
            for name, total, correct, predicted in zip(
                self.class_names, self.totals, self.correct, self.predicted, strict=True
            )
        ]

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "pictures": self.pictures,
            "acc1": self.top1,
            "acc5": self.top5,
            "loss": self.loss if np.isfinite(self.loss) else None,
            "classes_present": len(self.present),
            "acc1_present": self.top1_present,
            "acc5_present": self.top5_present,
            "absent": self.absent,
            "per_class": self.per_class(),
            "classes": self.class_names,
            "confusion": None if self.confusion is None else self.confusion.tolist(),
        }


def ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before the true one, int64 (B,); 0 means it came first.

    Equal logits are ordered by class, as argmax does. A row with a NaN ranks its class last: a
    model that computes nonsense has recognised nothing.

    Args:
        logits: (B, K).
        labels: int64 (B,).
    """
    classes = np.arange(logits.shape[1])
    own = np.take_along_axis(logits, labels[:, None], axis=1)  # (B, 1)
    before = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    rank = before.sum(axis=1)
    return np.where(np.isnan(logits).any(axis=1), logits.shape[1], rank)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy of each picture against its class, float64 (B,)."""
    logits = logits.astype(np.float64)
    largest = logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0]
    return log_sum - np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]


class Counter:
    """Adds up batches; one per evaluated model.

    Where the data have pictures of some classes only, accuracy is counted twice: with all classes
    of the model competing, and with those present alone, as ImageNet-A and -R are reported.
    """

    def __init__(self, class_names: Sequence[str], present: np.ndarray | None = None) -> None:
        """``present``: int64, the classes of which the data have pictures; None for all."""
        self.class_names = list(class_names)
        count = len(self.class_names)
        self.present = np.arange(count) if present is None else np.sort(present)
        # loss, first, among the first five; and the latter two with the present classes alone
        self._sums = np.zeros(5)
        self._totals = np.zeros(count, np.int64)
        self._correct = np.zeros(count, np.int64)
        self._predicted = np.zeros(count, np.int64)
        self._confusion = np.zeros((count, count), np.int64) if count <= LARGEST_CONFUSION else None

    def add(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Count a batch: logits (B, K), labels int64 (B,), which are present."""
        count = len(self.class_names)
        rank = alone = ranks(logits, labels)
        if len(self.present) < count:
            alone = ranks(logits[:, self.present], np.searchsorted(self.present, labels))
        first = logits.argmax(axis=1)
        self._sums += (
            cross_entropy(logits, labels).sum(),
            *((rank == 0).sum(), (rank < 5).sum()),
            *((alone == 0).sum(), (alone < 5).sum()),
        )
        self._totals += np.bincount(labels, minlength=count)
        self._correct += np.bincount(labels[rank == 0], minlength=count)
        self._predicted += np.bincount(first, minlength=count)
        if self._confusion is not None:
            np.add.at(self._confusion, (labels, first), 1)

    def result(
        self, average: Callable[[np.ndarray], np.ndarray] | None = None, processes: int = 1
    ) -> Accuracy:
        """The accuracy so far, over all ``processes`` whose mean ``average`` computes."""
        arrays: list[np.ndarray] = [self._sums, self._totals, self._correct, self._predicted]
        if self._confusion is not None:
            arrays.append(self._confusion)
        if average is not None and processes > 1:
            flat = np.concatenate([array.ravel().astype(np.float64) for array in arrays])
            flat = average(flat) * processes
            parts = np.split(flat, np.cumsum([array.size for array in arrays])[:-1])
            arrays = [
                part if array is self._sums else np.rint(part).astype(np.int64).reshape(array.shape)
                for part, array in zip(parts, arrays, strict=True)
            ]
        sums, totals, correct, predicted = arrays[:4]
        pictures = int(totals.sum())
        means = sums / pictures if pictures else np.full(5, np.nan)
        loss, first, five, first_present, five_present = means.tolist()
        return Accuracy(
            pictures=pictures,
            top1=100 * first,
            top5=100 * five,
            loss=loss,
            present=self.present,
            top1_present=100 * first_present,
            top5_present=100 * five_present,
            class_names=self.class_names,
            totals=totals,
            correct=correct,
            predicted=predicted,
            confusion=arrays[4] if self._confusion is not None else None,
        )
