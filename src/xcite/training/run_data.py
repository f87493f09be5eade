"""The data of a recipe and of a run: training pictures, validation pictures, and what looks odd."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xcite import recipe as recipes
from xcite.data.findings import describe, refuse_doubtful
from xcite.data.loose_pictures import UNLABELLED, LoosePictures
from xcite.data.overlap import copies, shared_pictures
from xcite.data.relabelled import Relabelled
from xcite.data.sources import Source, open_source, read_class_names
from xcite.data.sources.layouts import find_place
from xcite.errors import XciteError
from xcite.language import tr
from xcite.recipe import Recipe
from xcite.runtime.classes import brief
from xcite.training import splitting
from xcite.training.run_folder import RunFolder
from xcite.training.splitting import Split
from xcite.weights.opening import recognise_weights


@dataclass(frozen=True)
class RunData:
    """What a recipe's data section stands for.

    Attributes:
        validation: with the same classes as ``train``; None without any.
        split: where the validation pictures were held out of the training pictures.
        found: lines that say what is there, what was left out and what looks wrong.
        notes: what else people should know.
    """

    train: Source
    validation: Source | None
    split: Split | None
    found: list[str]
    notes: list[str]


def require_pictures(recipe: Recipe, name: str) -> None:
    """Refuse a recipe that leaves open what to train on; its default, the digits, is for tests.

    Raises:
        XciteError: nothing says which pictures to train on.
    """
    if "train" not in recipe.data.model_fields_set:
        raise XciteError(
            f"{name} does not say which pictures to train on: set data.train to a folder, an "
            "archive or a list, or to digits for scikit-learn's"
        )


def open_data(recipe: Recipe, split_file: Path | None = None) -> RunData:
    """Open a recipe's pictures.

    Args:
        split_file: of a run that was begun before; where there is none a split is drawn.

    Raises:
        XciteError: pictures that cannot be listed, or a split of other pictures.
    """
    train = open_training(recipe)
    if recipe.data.labels:
        _check_classes(recipe, train)
    found = [tr("training: {line}", line=line) for line in describe(train)]
    if split_file is None:  # a run that goes on was warned when it began
        found += _copies(train)
    doubt = functools.partial(
        refuse_doubtful,
        train,
        on_error=recipe.data.on_error,
        classes_given=recipe.data.classes is not None,
    )
    if recipe.data.validation is None:
        doubt(None)
    if recipe.data.validation is None and recipe.data.holdout is not None:
        split = splitting.read(train, split_file) if split_file else None
        if split is None:
            channels = recipe.preprocessing.channels
            split = splitting.draw(train, recipe.data.holdout, recipe.run.seed, channels=channels)
        found += [*_lonely_classes(train), *_absent_classes(split.validation)]
        notes = [*train.notes, *split.notes]
        return RunData(split.train, split.validation, split, found, notes)
    if recipe.data.validation is None:
        found += _lonely_classes(train)
        return RunData(train, None, None, found, [*train.notes])
    validation = _listed(
        recipe, recipe.data.validation, classes=list(train.class_names), split="validation"
    )
    doubt(validation)
    found += [tr("validation: {line}", line=line) for line in describe(validation)]
    found += [*_lonely_classes(train), *_absent_classes(validation)]
    if split_file is None:
        found += _overlap(train, validation)
    return RunData(train, validation, None, found, [*train.notes, *validation.notes])


def open_training(recipe: Recipe) -> Source:
    """The pictures of ``data.train``, held-out ones included."""
    classes = recipe.data.classes
    if classes and not os.path.exists(os.path.expanduser(classes)):
        raise XciteError(
            f"{classes}: no such file of class names; set data.classes to where it is, or to "
            "nothing for the names that the pictures come with"
        )
    names = read_class_names(classes) if classes else None
    if not recipe.data.labels:
        return _unlabelled(recipe)
    return _listed(recipe, recipe.data.train, classes=names)


def _unlabelled(recipe: Recipe) -> Source:
    """All pictures below a folder (of its training part, where it has parts), or of an archive."""
    folder = Path(os.path.expanduser(recipe.data.train))
    place = find_place(folder, "train") if folder.is_dir() else None
    if place is not None and place.kind == "folder":
        return LoosePictures(place.paths[0], UNLABELLED)
    source = _listed(recipe, recipe.data.train)
    return Relabelled(source, np.zeros(len(source.class_names), np.int64), UNLABELLED)


def open_validation(run: str | Path) -> Source:
    """The validation pictures of a run folder, with the run's classes, as training saw them.

    Raises:
        XciteError: no run folder, a run without validation, or data that are not where they were.
    """
    folder = RunFolder.open(run)
    recipe = recipes.load(str(folder.recipe))
    if recipe.data.validation is not None:
        names = _known_classes(folder) or open_training(recipe).class_names
        return _listed(recipe, recipe.data.validation, classes=names, split="validation")
    found = open_data(recipe, folder.split).validation
    if found is None:
        raise XciteError(
            f"{run} was trained without validation pictures; say what to evaluate on with --data"
        )
    return found


def _known_classes(folder: RunFolder) -> list[str] | None:
    """The class names that the run's weights carry: its training pictures may be gone by now."""
    try:
        return recognise_weights(folder.path).metadata.class_names
    except XciteError:  # no weights yet
        return None


def _listed(recipe: Recipe, spec: str, **more: object) -> Source:
    listed = functools.partial(
        open_source,
        spec,
        root=recipe.data.root,
        channels=recipe.preprocessing.channels,
        outside_root=recipe.data.outside_root,
        columns=recipe.data.columns,
    )
    return listed(**more)  # type: ignore[arg-type]


def _check_classes(recipe: Recipe, train: Source) -> None:
    where, count = f"data.train {recipe.data.train}", len(train.class_names)
    if count < 2:
        raise XciteError(
            f"{where} has {count} class ({brief(train.class_names)}); there must be at least two: "
            "give the folder that holds a folder of pictures for every class"
        )
    # Where the teacher alone is heard, no picture is asked for its label.
    if not recipe.distill.replaces_labels and (missing := _without_pictures(train)):
        raise XciteError(f"{where} has no picture of {brief(missing, 8)}")


def _without_pictures(source: Source) -> list[str]:
    """The classes that no picture belongs to."""
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    return [name for name, count in zip(source.class_names, counts, strict=True) if not count]


def _lonely_classes(train: Source) -> list[str]:
    counts = np.bincount(train.labels, minlength=len(train.class_names))
    lonely = [name for name, count in zip(train.class_names, counts, strict=True) if count == 1]
    if not lonely:
        return []
    return [tr("warning: a single training picture of {classes}", classes=brief(lonely, 8))]


def _absent_classes(validation: Source | None) -> list[str]:
    absent = _without_pictures(validation) if validation else []
    if not absent:
        return []
    return [tr("warning: no validation pictures of {classes}", classes=brief(absent, 8))]


def _copies(train: Source) -> list[str]:
    pairs = copies(train)
    torn = [(one, other) for one, other in pairs if train.labels[one] != train.labels[other]]
    if not pairs:
        return []
    one, other = (torn or pairs)[0]
    told = {"picture": train.name(other), "same": train.name(one)}
    if not torn:
        return [
            tr(
                "training: {count:,} pictures are copies of others, such as {picture} ({same})",
                count=len(pairs),
                **told,
            )
        ]
    return [
        tr(
            "warning: {count:,} training pictures are copies of others, {torn:,} of them in "
            "another class, such as {picture} ({same}): one of the two is wrong",
            count=len(pairs),
            torn=len(torn),
            **told,
        )
    ]


def _overlap(train: Source, validation: Source) -> list[str]:
    shared = shared_pictures(train, validation)
    if not shared:
        return []
    one, other = shared[0]
    return [
        tr(
            "warning: {count:,} validation pictures are training pictures, such as {picture} "
            "({same}): the accuracy will be too good",
            count=len(shared),
            picture=validation.name(other),
            same=train.name(one),
        )
    ]
