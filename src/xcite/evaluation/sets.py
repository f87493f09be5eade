"""An opened model on one set of pictures."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xcite.data.decoding import MAX_PIXELS
from xcite.data.findings import describe
from xcite.data.pipeline import EvaluationLoader
from xcite.data.sources import Source
from xcite.errors import XciteError
from xcite.evaluation.accuracy import Accuracy
from xcite.evaluation.evaluate import evaluate
from xcite.evaluation.real_labels import (
    open_validation_pictures,
    read_real_labels,
    with_real_labels,
)
from xcite.language import noted, tr
from xcite.runtime.classes import Labelled, brief, label, match_classes, open_labelled
from xcite.runtime.opening import OpenedModel
from xcite.weights.imagenet import imagenet_wnids


@dataclass(frozen=True)
class PictureSet:
    """Pictures with what is right for them, as a model's classes.

    Attributes:
        source: the pictures.
        class_names: one for each logit.
        present: int64, the model's classes of which there are pictures; None for all.
        accepted: the right classes of each picture where there are several, else None.
        notes: what was found, one line each.
        unlabelled: pictures that are left out because no class is right for them.
    """

    source: Source
    class_names: list[str]
    present: np.ndarray | None
    accepted: list[np.ndarray] | None = None
    notes: list[str] = field(default_factory=list)
    unlabelled: int = 0


@dataclass(frozen=True)
class Result:
    """What came out.

    Attributes:
        left_out: pictures that could not be decoded.
        unlabelled: pictures that no class is right for (ReaL).
    """

    accuracy: Accuracy
    left_out: int
    unlabelled: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "left_out": self.left_out,
            "unlabelled": self.unlabelled,
            "seconds": round(self.seconds, 3),
            **self.accuracy.as_json(),
        }


def open_set(
    spec: str,
    opened: OpenedModel,
    *,
    root: str | None = None,
    outside_root: bool = False,
    columns: str | None = None,
    real: str | None = None,
    ignore_extra: bool = False,
    model: str = "the model",
) -> PictureSet:
    """The pictures of ``spec`` under the model's classes.

    Args:
        spec, root, outside_root, columns: what `xcite.data.sources.open_source` takes.
        real: ReaL's ``real.json``, whose labels are used instead of the folders' names.
        ignore_extra: leave out pictures of classes that the model does not know.
        model: what messages call the model.

    Raises:
        XciteError: unreadable pictures or labels, or classes that do not match.
    """
    if real is not None:
        pictures = open_validation_pictures(spec, root=root, outside_root=outside_root)
        return _with_real_labels(pictures, opened, real, model)
    return labelled_set(
        open_labelled(
            spec,
            opened.class_names,
            opened.architecture.num_classes,
            channels=opened.preprocessing.channels,
            root=root,
            outside_root=outside_root,
            columns=columns,
            model=model,
            ignore_extra=ignore_extra,
        )
    )


def own_set(source: Source, opened: OpenedModel, *, data: str) -> PictureSet:
    """Pictures that are listed already, such as a run's own, under the model's classes."""
    count = opened.architecture.num_classes
    return labelled_set(label(source, opened.class_names, count, data=data))


def labelled_set(labelled: Labelled) -> PictureSet:
    """The set of labelled pictures, with what was found in words."""
    names, present = labelled.class_names, labelled.present
    absent = [names[place] for place in np.setdiff1d(np.arange(len(names)), present).tolist()]
    notes = [*describe(labelled.listing), *map(noted, labelled.notes)]
    if absent:
        told = tr(
            "note: no pictures of {count} classes: {names}", count=len(absent), names=brief(absent)
        )
        notes.append(told)
    return PictureSet(labelled.source, names, present, notes=notes)


def _with_real_labels(source: Source, opened: OpenedModel, real: str, model: str) -> PictureSet:
    names, count = opened.class_names, opened.architecture.num_classes
    columns, _ = match_classes(
        names, imagenet_wnids(), count=count, model=model, data="ImageNet with ReaL's labels"
    )
    chosen, accepted = with_real_labels(source, read_real_labels(real), columns, real)
    unlabelled = len(source) - len(chosen)
    told = tr(
        "{pictures:,} pictures, {unlabelled:,} of them without a right class in {file}",
        pictures=len(source),
        unlabelled=unlabelled,
        file=real,
    )
    names = list(names or imagenet_wnids())
    return PictureSet(chosen, names, None, accepted, [told], unlabelled)


def evaluate_set(
    opened: OpenedModel,
    pictures: PictureSet,
    *,
    batch: int,
    workers: int,
    skip: bool = False,
    max_pixels: int = MAX_PIXELS,
    after_batch: Callable[[int], None] = lambda number: None,
) -> Result:
    """Show every picture once to the model.

    Args:
        batch: pictures at a time.
        workers: loader processes.
        skip: leave out pictures that cannot be decoded, instead of stopping.
        max_pixels: a picture with more cannot be decoded.
        after_batch: called with the number of pictures just done.

    Raises:
        XciteError: a picture that cannot be decoded, or none that can.
    """
    loader = EvaluationLoader(
        pictures.source,
        opened.preprocessing,
        batch=batch,
        workers=workers,
        on_error="skip" if skip else "stop",
        skip_limit=len(pictures.source),  # how many were left out stands beside every figure
        max_pixels=max_pixels,
    )
    started = time.monotonic()
    accuracy = evaluate(
        {"model": opened.classifier},
        loader,
        opened.preprocessing,
        pictures.class_names,
        present=pictures.present,
        accepted=pictures.accepted,
        after_batch=after_batch,
    )["model"]
    seconds = time.monotonic() - started
    if not accuracy.pictures:
        raise XciteError(f"none of the {len(pictures.source)} pictures could be decoded")
    left_out = len(pictures.source) - accuracy.pictures
    return Result(accuracy, left_out, pictures.unlabelled, seconds)
