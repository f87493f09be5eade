"""A teacher's answers, computed once and reused by any number of students and runs.

A cache is a folder:

    manifest.json             what the answers depend on, field by field, and its hash
    view-00000.safetensors    the answers for the pictures of epoch 0; one file a view
    view-00001.part-00003.safetensors    a part of a view that is still being computed

"present" is a bit per (picture, repetition), in the order index * repeats + repetition; the answers
follow in that order. Hard: "classes" uint16 or uint32 (n,). Soft and DML: "top_classes" (n, top),
"top_probabilities" float16 (n, top) at temperature tau (DML: 1) and "rest" float16 (n,), the
probability of all other classes together, which is spread over them evenly when it is read.

Epoch e of a run uses view e % V, pixels, mixing and answers alike.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from xcite.data.batch import Batch, split
from xcite.data.pipeline import TrainLoader
from xcite.data.sources import Source
from xcite.errors import XciteError
from xcite.recipe import Recipe
from xcite.training.distillation import LiveTeacher, facts
from xcite.whole_files import whole_file, write_text

FORMAT = "xcite teacher cache 1"
PART_PICTURES = 1024  # an interruption costs at most so many answers
_MANIFEST_LIMIT = 16 * 2**20  # bytes
_LEAST = 1e-7  # stands for a probability that float16 rounded to zero

Columns = dict[str, np.ndarray]


def dependencies(
    recipe: Recipe,
    source: Source,
    class_names: Sequence[str],
    teacher: dict[str, Any] | None,
    processes: int = 1,
) -> dict[str, Any]:
    """Everything the answers depend on, by the name of the recipe's key where there is one.

    Not in it: what only the student feels (its model, learning rate, label smoothing, alpha), and
    on what the teacher ran (engine, precision), so that a cache serves both engines.

    Args:
        teacher: its `Teacher.identity`; None leaves its fields out.
        processes: that train; each mixes its own share of a batch, so they matter if it is mixed.
    """
    mixed = recipe.augment.mix_probability and (recipe.augment.mixup or recipe.augment.cutmix)
    augment = recipe.augment.model_dump(mode="json", exclude={"smoothing"})
    pixels = recipe.preprocessing.model_dump(mode="json")
    names = json.dumps(list(class_names), ensure_ascii=False)
    depends: dict[str, Any] = {
        "data.train": source.fingerprint(),
        "data.classes": hashlib.sha256(names.encode()).hexdigest(),
        "data.repeats": recipe.data.repeats,
        "data.on_error": recipe.data.on_error,
        "data.fast": recipe.data.fast,
        **{f"preprocessing.{key}": value for key, value in pixels.items()},
        **{f"augment.{key}": value for key, value in augment.items()},
        "optim.batch": recipe.optim.batch,
        "processes": processes if mixed else 1,
        "run.seed": recipe.run.seed,
        "distill.loss": recipe.distill.loss,
    }
    if recipe.distill.loss == "soft":
        depends["distill.tau"] = recipe.distill.tau
    if recipe.distill.loss != "hard":
        depends["distill.top"] = min(recipe.distill.top, len(class_names))
    if teacher is not None:
        depends["distill.teacher (sha256 of its weights)"] = teacher["sha256"]
        depends["distill.teacher_size"] = teacher["size"]
        depends["teacher's mean"], depends["teacher's std"] = teacher["mean"], teacher["std"]
    return depends


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names of differing fields with both values, for a message."""
    return [
        f"{name} (cache: {_short(found.get(name))}, this run: {_short(wanted.get(name))})"
        for name in sorted(set(wanted) | set(found))
        if wanted.get(name) != found.get(name)
    ]


def digest(depends: dict[str, Any]) -> str:
    """SHA-256 of the fields as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def open_cache(
    recipe: Recipe, source: Source, class_names: Sequence[str], *, processes: int = 1
) -> "CachedTeacher":
    """The cache in ``recipe.distill.cache``, checked against the recipe.

    When the recipe names a teacher too, its weights are read and compared; otherwise the cache
    says who the teacher was.

    Raises:
        XciteError: no cache, an unfinished one, or one of other things, naming the fields.
    """
    assert recipe.distill.cache is not None
    folder = Path(recipe.distill.cache)
    manifest = _read_manifest(folder)
    named = recipe.distill.teacher
    teacher = facts(recipe, class_names).identity() if named else None
    depends = dependencies(recipe, source, class_names, teacher, processes)
    found = dict(manifest["depends"])
    if teacher is None:
        found = {name: value for name, value in found.items() if "teacher" not in name}
    _refuse(folder, differences(depends, found))
    views = recipe.distill.views or recipe.optim.epochs
    done = sum(_view_path(folder, view).is_file() for view in range(views))
    if done < views:
        raise XciteError(
            f"the teacher cache {folder} holds {done} of {views} views; finish it with "
            f"`xcite teach`, or set distill.views to {max(done, 1)}"
        )
    return CachedTeacher(folder, manifest, views, recipe, len(class_names))


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
        self._temperature = recipe.distill.tau if recipe.distill.loss == "soft" else 1.0
        self._view = -1
        self._keys = np.empty(0, np.int64)  # of the answers of that view, rising
        self._columns: Columns = {}

    def answers(self, batch: Batch) -> np.ndarray:
        if batch.epoch != self._view:
            self._columns = _read_view(
                _view_path(self.folder, batch.epoch), self._manifest["hash"], self._classes
            )
            self._keys = np.flatnonzero(np.unpackbits(self._columns.pop("present")))
            self._view = batch.epoch
        keys = batch.views[:, 0] * self._repeats + batch.views[:, 1]  # (B,)
        rows = np.searchsorted(self._keys, keys)
        known = rows < len(self._keys)
        known[known] = self._keys[rows[known]] == keys[known]
        if not known.all():
            index, repetition = batch.views[~known][0]
            raise XciteError(
                f"the teacher cache {self.folder} has no answer for picture {index}, repetition "
                f"{repetition} in view {batch.epoch}; compute it anew with `xcite teach`"
            )
        if "classes" in self._columns:
            return self._columns["classes"][rows].astype(np.int64)
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


def compress(answers: np.ndarray, recipe: Recipe, classes: int) -> Columns:
    """What is stored of answers: classes (B,) as they are, of logits (B, K) the most probable."""
    whole = np.uint16 if classes <= 2**16 else np.uint32
    if recipe.distill.loss == "hard":
        return {"classes": answers.astype(whole)}
    tau = recipe.distill.tau if recipe.distill.loss == "soft" else 1.0
    scaled = answers.astype(np.float64) / tau
    p = np.exp(scaled - scaled.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)  # (B, K)
    top = min(recipe.distill.top, p.shape[1])
    best = np.argsort(-p, axis=1, kind="stable")[:, :top]  # (B, top)
    kept = np.take_along_axis(p, best, 1)
    return {
        "top_classes": best.astype(whole),
        "top_probabilities": kept.astype(np.float16),
        "rest": np.maximum(1 - kept.sum(1), 0).astype(np.float16),
    }


def compute(
    recipe: Recipe,
    source: Source,
    class_names: Sequence[str],
    teacher: LiveTeacher,
    folder: Path,
    *,
    views: int | None = None,
    processes: int = 1,
    after_batch: Callable[[int, int], None] = lambda pictures, total: None,
) -> int:
    """Ask the teacher for every picture of epochs 0 to views - 1 and keep the answers.

    A cache that is there already goes on where it was left.

    Args:
        processes: that the students will train on, each with its share of a batch.
        views: epochs to compute; by default ``distill.views``, else all of the recipe's.
        after_batch: called with the number of pictures done so far, and of all.

    Returns:
        How many views the cache holds now.

    Raises:
        XciteError: the folder holds a cache of other things, or cannot be written.
    """
    views = views or recipe.distill.views or recipe.optim.epochs
    depends = dependencies(recipe, source, class_names, teacher.identity(), processes)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "hash": digest(depends),
        "depends": depends,
        "teacher": teacher.identity(),
        "classes": len(class_names),
    }
    if (folder / "manifest.json").is_file():
        _refuse(folder, differences(depends, _read_manifest(folder)["depends"]))
    elif folder.is_dir() and any(folder.iterdir()):
        raise XciteError(f"{folder} is not empty and holds no teacher cache; give another --out")
    else:
        write_text(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    loaders = [
        TrainLoader(source, recipe, rank=rank, world_size=processes) for rank in range(processes)
    ]
    work = _Work(recipe, loaders, teacher, folder, manifest["hash"], len(class_names), len(source))
    each = work.steps * recipe.optim.batch
    try:
        for view in range(views):
            if not _view_path(folder, view).is_file():
                for steps in work.compute(view):
                    after_batch(view * each + steps * recipe.optim.batch, views * each)
            after_batch((view + 1) * each, views * each)
    finally:
        for loader in loaders:
            loader.close()
    return views


class _Work:
    """Computes views part by part, so that an interruption loses little."""

    def __init__(
        self,
        recipe: Recipe,
        loaders: Sequence[TrainLoader],
        teacher: LiveTeacher,
        folder: Path,
        hashed: str,
        classes: int,
        pictures: int,
    ) -> None:
        self.recipe = recipe
        self.loaders = loaders
        self.teacher = teacher
        self.folder = folder
        self.hashed = hashed
        self.classes = classes
        self.keys = pictures * recipe.data.repeats
        self.steps = loaders[0].steps_per_epoch
        self.part = min(self.steps, max(1, PART_PICTURES // recipe.optim.batch))  # steps in a part

    def compute(self, view: int) -> Iterator[int]:
        """Write the file of a view; yields the number of its steps done, after each."""
        count = -(-self.steps // self.part)
        paths = [self.folder / f"view-{view:05d}.part-{i:05d}.safetensors" for i in range(count)]
        done = next((i for i, path in enumerate(paths) if not path.is_file()), count)
        gathered: list[Columns] = []
        step = done * self.part
        if step < self.steps:
            readers = [loader.epoch(view, start_step=step) for loader in self.loaders]
            for shares in zip(*readers, strict=True):
                gathered += [self._answers(batch) for batch in shares]
                step += 1
                if step % self.part == 0 or step == self.steps:
                    path = paths[(step - 1) // self.part]
                    _save(path, _join(gathered), self.hashed, view)
                    gathered = []
                yield step
        self._finish(view, _join([_read(path, self.hashed, view) for path in paths]))
        for path in paths:
            path.unlink(missing_ok=True)

    def _answers(self, batch: Batch) -> Columns:
        """Keys and stored answers of a process's share of a batch."""
        # The teacher sees the parts that a training step sees: the same sums, the same bits.
        parts = split(batch, self.recipe.optim.accumulate)
        answers = np.concatenate([self.teacher.answers(part) for part in parts])
        views = np.concatenate([part.views for part in parts])
        keys = views[:, 0] * self.recipe.data.repeats + views[:, 1]
        return {"keys": keys.astype(np.int64), **compress(answers, self.recipe, self.classes)}

    def _finish(self, view: int, whole: Columns) -> None:
        """Sort the answers of a view by key, with a bit for every key that has one."""
        keys = whole.pop("keys")
        order = np.argsort(keys, kind="stable")
        if (np.diff(keys[order]) == 0).any():
            raise XciteError(
                "a picture occurs twice in an epoch, in place of one that cannot be decoded, and "
                "the cache cannot tell which is which; remove the damaged pictures from data.train"
            )
        present = np.zeros(self.keys, bool)
        present[keys] = True
        columns = {name: np.ascontiguousarray(column[order]) for name, column in whole.items()}
        columns["present"] = np.packbits(present)
        _save(_view_path(self.folder, view), columns, self.hashed, view)


def _join(parts: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _view_path(folder: Path, view: int) -> Path:
    return folder / f"view-{view:05d}.safetensors"


def _save(path: Path, columns: Columns, hashed: str, view: int) -> None:
    with whole_file(path) as aside:
        try:
            save_file(columns, aside, {"format": FORMAT, "hash": hashed, "view": str(view)})
        except SafetensorError as error:
            raise XciteError(f"cannot write {path}: {error}") from error


def _read(path: Path, hashed: str, view: int) -> Columns:
    try:
        with safe_open(path, "numpy") as file:
            said = file.metadata() or {}
            if (said.get("hash"), said.get("view")) != (hashed, str(view)):
                raise XciteError(f"{path} belongs to another teacher cache; delete it")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise XciteError(f"{path} is damaged: {error}; delete it and run `xcite teach`") from error


def _read_view(path: Path, hashed: str, classes: int) -> Columns:
    columns = _read(path, hashed, int(path.name[5:10]))
    wrong = XciteError(f"{path} is damaged; delete it and run `xcite teach`")
    names = set(columns)
    if names == {"present", "classes"}:
        ids, others = columns["classes"], []
    elif names == {"present", "top_classes", "top_probabilities", "rest"}:
        ids, others = columns["top_classes"], [columns["top_probabilities"], columns["rest"]]
    else:
        raise wrong
    rows = int(np.bitwise_count(columns["present"]).sum(dtype=np.int64))
    if ids.dtype.kind != "u" or any(len(column) != rows for column in (ids, *others)):
        raise wrong
    if ids.size and ids.max() >= classes:
        raise wrong
    return columns


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise XciteError(f"{folder} is not a teacher cache (no manifest.json); run `xcite teach`")
    try:
        if path.stat().st_size > _MANIFEST_LIMIT:
            raise ValueError("it is too long")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest.get("format") != FORMAT:
            raise ValueError(f"it is not of the format {FORMAT!r}")
        if manifest["hash"] != digest(manifest["depends"]):
            raise ValueError("its fields do not have the hash it names")
        dict(manifest["teacher"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise XciteError(f"{path} cannot be used: {error}") from error
    result: dict[str, Any] = manifest
    return result


def _refuse(folder: Path, differing: list[str]) -> None:
    if differing:
        raise XciteError(
            f"the teacher cache {folder} was made of other things: {'; '.join(differing)}; "
            "make one for this recipe with `xcite teach --out`"
        )


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) > 40 else text
