"""Top-1, top-5, loss and confusion by hand, and the pictures drawn of them."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xcite.errors import XciteError
from xcite.evaluation.accuracy import Counter, cross_entropy, ranks
from xcite.evaluation.evaluate import highest, validation_line
from xcite.figures.confusion import draw_confusion
from xcite.figures.curves import draw_curves

NAMES = [f"class {k}" for k in range(7)]


def test_by_hand() -> None:
    logits = np.zeros((3, 7), np.float32)
    logits[0] = [9, 1, 2, 3, 4, 5, 6]  # class 0: first
    logits[1] = [9, 1, 2, 3, 4, 5, 6]  # class 2: fifth of seven
    logits[2] = [9, 1, 2, 3, 4, 5, 6]  # class 1: last
    counter = Counter(NAMES)
    counter.add(logits[:2], np.array([0, 2]))
    counter.add(logits[2:], np.array([1]))
    result = counter.result()
    assert result.pictures == 3
    assert result.top1 == pytest.approx(100 / 3)
    # before class 2 stand 0, 6, 5, 4, 3: it is the sixth
    assert result.top5 == pytest.approx(100 / 3)
    assert result.confusion is not None
    assert result.confusion.tolist()[1] == [1, 0, 0, 0, 0, 0, 0]
    assert result.totals.tolist() == [1, 1, 1, 0, 0, 0, 0]
    rows = result.per_class()
    assert (rows[0]["recall"], rows[0]["precision"]) == (100, pytest.approx(100 / 3))
    assert (rows[6]["recall"], rows[6]["precision"]) == (None, None)
    assert validation_line(1, result) == "Validate Epoch [1] acc1 (33.333), acc5 (33.333)"
    assert validation_line(2, result, ema=True).startswith("Validate EMA Epoch [2] acc1 (")


def test_present_classes_alone_by_hand() -> None:
    logits = np.array([[9, 8, 7, 6, 5, 4, 3], [3, 9, 8, 7, 6, 5, 4]], np.float32)
    counter = Counter(NAMES, np.array([6, 2, 3]))
    counter.add(logits, np.array([2, 6]))
    result = counter.result()
    # class 2 is third of all and first of 2, 3, 6; class 6 is sixth of all and third of those
    assert (result.top1, result.top5) == (0, 50)
    assert (result.top1_present, result.top5_present) == (50, 100)
    assert result.absent == [NAMES[0], NAMES[1], NAMES[4], NAMES[5]]
    figures = result.as_json()
    assert (figures["classes_present"], figures["acc1_present"], figures["acc1"]) == (3, 50, 0)
    everything = Counter(NAMES)
    everything.add(logits, np.array([2, 6]))
    whole = everything.result()
    assert (whole.top1_present, whole.top5_present, whole.absent) == (0, 50, [])
    shared = counter.result(lambda flat: flat, processes=2)  # two processes with the same counts
    assert (shared.pictures, shared.top1_present) == (4, 50)


def test_of_several_right_classes_the_highest_counts() -> None:
    logits = np.array([[1, 5, 3], [1, 5, 3], [1, 5, 3]], np.float32)
    accepted = [np.array([0, 2]), np.array([1]), np.array([0])]
    assert highest(logits, accepted).tolist() == [2, 1, 0]


def test_equal_logits_and_nonsense() -> None:
    level = np.zeros((2, 7), np.float32)
    assert ranks(level, np.array([0, 6])).tolist() == [0, 6]  # as argmax: the first one wins
    level[0, 3] = np.nan
    assert ranks(level, np.array([0, 0])).tolist() == [7, 0]
    counter = Counter(NAMES)
    counter.add(level, np.array([3, 0]))
    result = counter.result()
    assert result.top1 == 50
    assert math.isnan(result.loss)
    assert result.as_json()["loss"] is None


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1e4, 0.0]], np.float32)
    assert cross_entropy(logits, np.array([0])) == pytest.approx([0])
    assert cross_entropy(logits, np.array([1])) == pytest.approx([1e4])


def test_several_processes_count_as_one() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((10, 7)).astype(np.float32), rng.integers(0, 7, 10)
    whole, parts = Counter(NAMES), [Counter(NAMES), Counter(NAMES)]
    whole.add(logits, labels)
    parts[0].add(logits[:7], labels[:7])
    parts[1].add(logits[7:], labels[7:])
    shares: list[np.ndarray] = []
    parts[1].result(lambda values: shares.append(values) or values, 2)  # what process 1 has
    together = parts[0].result(lambda values: (values + shares[0]) / 2, 2)
    alone = whole.result()
    assert (together.top1, together.top5) == (alone.top1, alone.top5)
    assert together.loss == pytest.approx(alone.loss)
    assert together.per_class() == alone.per_class()
    assert np.array_equal(together.confusion, alone.confusion)
    assert together.pictures == 10


def test_the_confusion_picture(tmp_path: Path) -> None:
    counter = Counter(NAMES)
    counter.add(np.eye(7, dtype=np.float32)[[0, 1, 2, 3, 3]], np.array([0, 1, 2, 3, 6]))
    draw_confusion(counter.result(), tmp_path / "confusion.png")
    picture = np.asarray(Image.open(tmp_path / "confusion.png").convert("RGB"))
    dark_blue = (picture[..., 2] > picture[..., 0].astype(int) + 60).mean()
    assert dark_blue > 0.02, "the diagonal is drawn"


def test_too_many_classes_for_pairs_still_give_a_picture(tmp_path: Path) -> None:
    counter = Counter([str(k) for k in range(5000)])
    counter.add(np.zeros((2, 5000), np.float32), np.array([0, 4999]))
    assert counter.result().top1 == 50
    assert counter.result().confusion is None
    draw_confusion(counter.result(), tmp_path / "recognised.png")
    assert Image.open(tmp_path / "recognised.png").width > 500


def test_the_curves(tmp_path: Path) -> None:
    rows = [{"kind": "step", "epoch": 1, "step": 5, "loss": 2.0, "lr": 1e-3}]
    draw_curves({"begun": rows}, tmp_path / "begun.png")  # no epoch is complete yet
    rows += [{"kind": "epoch", "epoch": 1, "step": 10, "loss": 1.5, "lr": 1e-3, "acc1": 40.0}]
    draw_curves({"a": rows, "b": rows}, tmp_path / "two.png")
    for name in ("begun.png", "two.png"):
        assert Image.open(tmp_path / name).size[0] > 1000
    with pytest.raises(XciteError, match="nothing to draw"):
        draw_curves({"empty": []}, tmp_path / "empty.png")
