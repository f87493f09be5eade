"""A teacher's answers, computed once and reused by any number of students and runs.

Epoch e of a run uses view e % V, pixels, mixing and answers alike.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xcite.control_characters import writable_json
from xcite.data.batch import Batch
from xcite.data.sources import Source
from xcite.engines.staging import Staged
from xcite.errors import XciteError
from xcite.recipe import Recipe
from xcite.runtime.ranking import probabilities, top_classes
from xcite.training.teachers.cache_files import Columns, read_manifest, read_view, view_path
from xcite.training.teachers.facts import facts

_LEAST = 1e-7  # stands for a probability that float16 rounded to zero


def dependencies(
    recipe: Recipe,
    source: Source,
    class_names: Sequence[str],
    teacher: dict[str, Any] | None,
) -> dict[str, Any]:
    """Everything the answers depend on, by the name of the recipe's key where there is one.

    Left out: what affects the student alone (its model, learning rate, label smoothing, alpha), and
    what the teacher ran on (engine, precision), so that a cache serves both engines.

    Args:
        teacher: its `Teacher.identity`; None leaves its fields out.
    """
    augment = recipe.augment.model_dump(mode="json", exclude={"smoothing"})
    pixels = recipe.preprocessing.model_dump(mode="json")
    names = json.dumps(list(class_names), ensure_ascii=False)
    depends: dict[str, Any] = {
        "data.train": source.fingerprint(),
        "data.classes": hashlib.sha256(writable_json(names).encode()).hexdigest(),
        "data.repeats": recipe.data.repeats,
        "data.on_error": recipe.data.on_error,
        "data.fast": recipe.data.fast,
        **{f"preprocessing.{key}": value for key, value in pixels.items()},
        **{f"augment.{key}": value for key, value in augment.items()},
        "optim.batch": recipe.optim.batch,
        "processes": 1,  # an older Xcite mixed as many shares of a batch apart as it had processes
        "run.seed": recipe.run.seed,
        "distill.loss": recipe.distill.loss,
    }
    if recipe.distill.space != "classes":
        depends["distill.space"] = recipe.distill.space
    question = recipe.distill.question
    if question is not None and question.tempered:
        depends["distill.tau"] = recipe.distill.tau
    if question is not None and question.answers == "logits":
        depends["distill.top"] = recipe.distill.top
        if recipe.distill.space == "classes":
            depends["distill.top"] = min(recipe.distill.top, len(class_names))
    if teacher is not None:
        depends["distill.teacher (sha256 of its weights)"] = teacher["sha256"]
        depends["distill.teacher_size"] = teacher["size"]
        depends["teacher's mean"], depends["teacher's std"] = teacher["mean"], teacher["std"]
    return depends


def refuse_differences(folder: Path, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise XciteError where a cache's `dependencies` are not those of this run, naming each."""
    differing = [
        f"{name} (cache: {_short(found.get(name))}, this run: {_short(wanted.get(name))})"
        for name in sorted(set(wanted) | set(found))
        if wanted.get(name) != found.get(name)
    ]
    if differing:
        raise XciteError(
            f"the teacher cache {folder} does not fit this recipe: {'; '.join(differing)}; "
            "make another one with `xcite teach --out`"
        )


def open_cache(recipe: Recipe, source: Source, class_names: Sequence[str]) -> "CachedTeacher":
    """The cache in ``recipe.distill.cache``, checked against the recipe.

    When the recipe names a teacher too, its weights are read and compared; otherwise the cache
    says who the teacher was.

    Raises:
        XciteError: no cache, an unfinished one, or one that does not fit, naming the fields.
    """
    assert recipe.distill.cache is not None
    folder = Path(os.path.expanduser(recipe.distill.cache))
    manifest = read_manifest(folder)
    named = recipe.distill.teacher
    teacher = facts(recipe, class_names).identity() if named else None
    depends = dependencies(recipe, source, class_names, teacher)
    found = dict(manifest["depends"])
    if teacher is None:
        found = {name: value for name, value in found.items() if "teacher" not in name}
    refuse_differences(folder, depends, found)
    views = recipe.distill.views or recipe.optim.epochs
    done = sum(view_path(folder, view).is_file() for view in range(views))
    if done < views:
        raise XciteError(
            f"the teacher cache {folder} holds {done} of {views} views; finish it with "
            f"`xcite teach`, or set distill.views to {max(done, 1)}"
        )
    own = recipe.distill.space == "classes"
    outputs = len(class_names) if own else int(manifest["classes"])
    return CachedTeacher(folder, manifest, views, recipe, outputs)


class CachedTeacher:
    """Answers out of a cache: no network runs, the cost is a table look-up."""

    def __init__(
        self, folder: Path, manifest: dict[str, Any], views: int, recipe: Recipe, classes: int
    ) -> None:
        self.folder = folder
        self.views = views
        self.notes = [f"the teacher's answers come from {folder}, {views} views"]
        self._manifest = manifest
        self._classes = classes
        self._repeats = recipe.data.repeats
        self._temperature = recipe.distill.temperature
        self._view = -1
        self._keys = np.empty(0, np.int64)  # of the answers of that view, rising
        self._columns: Columns = {}
        self._replaced: dict[int, int] = {}  # keys of damaged pictures to those shown instead

    def answers(self, batch: Batch, staged: Staged | None = None) -> np.ndarray:
        if batch.epoch != self._view:
            self._columns = read_view(
                self.folder, batch.epoch, self._manifest["hash"], self._classes
            )
            self._keys = np.flatnonzero(np.unpackbits(self._columns.pop("present")))
            replaced = self._columns.pop("replaced", np.empty((0, 2), np.int64))
            self._replaced = dict(replaced.tolist())
            self._view = batch.epoch
        keys, shown = batch.keys(self._repeats)  # (B,)
        rows = np.searchsorted(self._keys, keys)
        known = rows < len(self._keys)
        known[known] = self._keys[rows[known]] == keys[known]
        if not known.all():
            index, repetition = divmod(int(keys[~known][0]), self._repeats)
            raise XciteError(
                f"the teacher cache {self.folder} has no answer for picture {index}, repetition "
                f"{repetition} in view {batch.epoch}; compute it anew with `xcite teach`"
            )
        expected = np.array([self._replaced.get(key, key) for key in keys.tolist()])
        if (differ := expected != shown).any():
            raise XciteError(
                f"the teacher cache {self.folder} was computed while picture "
                f"{int(expected[differ][0]) // self._repeats} stood where picture "
                f"{int(shown[differ][0]) // self._repeats} is now: others can be read than then; "
                "compute it anew with `xcite teach`"
            )
        if "classes" in self._columns:
            return self._columns["classes"][rows].astype(np.int64)
        if "features" in self._columns:
            return self._columns["features"][rows].astype(np.float32)
        return self._temperature * log_probabilities(
            self._columns["top_classes"][rows],
            self._columns["top_probabilities"][rows],
            self._columns["rest"][rows],
            self._classes,
        )

    def identity(self) -> dict[str, Any]:
        return {**self._manifest["teacher"], "cache": self._manifest["hash"]}

    def data_epoch(self, epoch: int) -> int:
        return epoch % self.views


def log_probabilities(
    top_classes: np.ndarray, top_probabilities: np.ndarray, rest: np.ndarray, classes: int
) -> np.ndarray:
    """float32 (B, K) of the stored (B, top), the rest spread evenly; each row sums to 1 as exp."""
    others = classes - top_classes.shape[1]
    share = rest.astype(np.float32)[:, None] / max(others, 1)
    p = np.broadcast_to(share, (len(rest), classes)).copy()  # (B, K)
    np.put_along_axis(p, top_classes.astype(np.int64), top_probabilities.astype(np.float32), 1)
    p = np.maximum(p, _LEAST)
    result: np.ndarray = np.log(p / p.sum(1, keepdims=True))
    return result


def directions(features: np.ndarray) -> np.ndarray:
    """(B, D) of length 1; the cosine does not see the length."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit: np.ndarray = features / np.maximum(length, _LEAST)
    return unit


def compress(answers: np.ndarray, recipe: Recipe, classes: int) -> Columns:
    """What is stored of answers: classes (B,) as they are, of logits (B, K) the most probable, of
    features their direction as float16.
    """
    whole = np.uint16 if classes <= 2**16 else np.uint32
    if answers.ndim == 1:
        return {"classes": answers.astype(whole)}
    if recipe.distill.space == "features":
        return {"features": directions(answers).astype(np.float16)}
    p = probabilities(answers, recipe.distill.temperature)  # (B, K)
    best = top_classes(p, recipe.distill.top)  # (B, top)
    kept = np.take_along_axis(p, best, 1)
    return {
        "top_classes": best.astype(whole),
        "top_probabilities": kept.astype(np.float16),
        "rest": np.maximum(1 - kept.sum(1), 0).astype(np.float16),
    }


def divergence(answers: np.ndarray, stored: Columns, recipe: Recipe, classes: int) -> np.ndarray:
    """KL divergence of what `compress` made of logits (B, K) from them, float32 (B,), in nats."""
    p = probabilities(answers, recipe.distill.temperature)  # (B, K)
    kept = log_probabilities(
        stored["top_classes"], stored["top_probabilities"], stored["rest"], classes
    )
    given = np.log(np.maximum(p, np.finfo(np.float64).tiny))
    lost: np.ndarray = (p * (given - kept)).sum(1).astype(np.float32)
    return lost


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) > 40 else text
