"""Which of a model's classes are those of the data: decided by name, in one place."""

import functools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from xcite.data.relabelled import Relabelled
from xcite.data.sources import ListFile, Source, Subset, open_source
from xcite.data.sources.class_names import read_class_names
from xcite.errors import XciteError
from xcite.weights.imagenet import first_word, imagenet_classes, imagenet_wnids, in_imagenet_order


def match_classes(
    known: Sequence[str] | None,
    wanted: Sequence[str],
    *,
    count: int | None = None,
    numbered: bool = False,
    model: str = "the model",
    data: str = "the data",
) -> tuple[np.ndarray | None, str | None]:
    """The model's class for each wanted one, and a note for people.

    A model may know more classes than are wanted. ImageNet's classes match by wnid, the names of
    its folders (n01440764), and by the names that various lists give them.

    Args:
        known: the model's class names, in the order of its logits; None when it names none.
        wanted: class names of the data.
        count: number of the model's logits, if it is known.
        numbered: take the bare numbers 0, 1, ... of the data for the model's classes, whatever
            their names. Right where a person reads the note beside the figures; a teacher that is
            no match would teach wrong classes unseen.
        model, data: what messages call the two.

    Returns:
        int64 (len(wanted),), or None when both have the same classes in the same order.

    Raises:
        XciteError: with both lists, when the model does not know a class of the data; or names are
            missing and the numbers of classes differ.
    """
    if known is None:
        return _match_unnamed(wanted, count, numbered=numbered, model=model, data=data)
    if list(known) == list(wanted):
        return None, None
    if in_imagenet_order(known) and in_imagenet_order(wanted):
        return None, f"{data} has ImageNet's classes in order, as {model}"
    place = _places(known, wanted)
    unknown = [name for name in wanted if name not in place]
    if unknown and numbered and _bare_numbers(known, wanted):
        place, unknown = {str(number): number for number in range(len(known))}, []
        note = f"{brief(wanted, 2)} of {data}: taken to be the classes of {model}, in this order"
    elif unknown:
        raise XciteError(
            f"{model} does not know {brief(unknown)}; its classes: {brief(known)}; "
            f"{data}: {brief(wanted)}"
        )
    elif not set(wanted) <= set(known):
        by = "wnids" if wanted[0] in _positions(imagenet_wnids()) else "names"
        note = f"{data} gives {len(wanted)} of the {len(known)} classes of {model} by their {by}"
    elif len(known) == len(wanted):
        note = f"the classes of {model} are in another order and were matched by name"
    else:
        note = f"{data} has {len(wanted)} of the {len(known)} classes of {model}"
    return _columns(place, wanted, len(known)), note


def _match_unnamed(
    wanted: Sequence[str], count: int | None, *, numbered: bool, model: str, data: str
) -> tuple[np.ndarray | None, str]:
    """`match_classes` for a model that names no classes."""
    if numbered and count is not None:
        place = {str(number): number for number in range(count)}
        if set(wanted) <= set(place):
            columns = _columns(place, wanted, count)
            return columns, f"{model} names no classes: the numbers of {data} are taken for them"
    wnids = _positions(imagenet_wnids())
    if count == len(wnids) and set(wanted) <= set(wnids):
        return _columns(wnids, wanted, count), (
            f"{model} names no classes: taken to be ImageNet's, which {data} gives by their wnids"
        )
    if count is not None and count != len(wanted):
        raise XciteError(
            f"{model} names no classes and has {count}, {data} has {len(wanted)} "
            f"({brief(wanted)}); use a model trained on these classes"
        )
    return None, f"{model} names no classes: taken to be those of {data}, in this order"


def same_in_order(known: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether ``wanted`` are the model's classes in the same order, maybe under other names.

    Other names are ImageNet's wnids beside the names of its classes, whoever wrote those, and the
    bare numbers of a list file beside any names that are not such numbers themselves.
    """
    if _bare_numbers(known, wanted):
        return list(wanted) == sorted(wanted, key=int)
    if list(known) == list(wanted):
        return True
    return in_imagenet_order(known) and in_imagenet_order(wanted)


def _places(known: Sequence[str], wanted: Sequence[str]) -> dict[str, int]:
    """Where the model has a class, under the kind of name by which most of ``wanted`` are known."""
    readings = [_positions(known)]
    if in_imagenet_order(known):
        names = imagenet_classes()
        readings += [_positions(imagenet_wnids()), _positions(names)]
        words = list(map(first_word, names))
        place = {word: index for index, word in enumerate(words) if words.count(word) == 1}
        readings.append({n: place[first_word(n)] for n in wanted if first_word(n) in place})
    return max(readings, key=lambda place: sum(name in place for name in wanted))


def _positions(names: Iterable[str]) -> dict[str, int]:
    return {name: index for index, name in enumerate(names)}


def _columns(place: dict[str, int], wanted: Sequence[str], count: int) -> np.ndarray | None:
    columns = np.array([place[name] for name in wanted], np.int64)
    return None if np.array_equal(columns, np.arange(count)) else columns


def _bare_numbers(known: Sequence[str], wanted: Sequence[str]) -> bool:
    numbers = {str(number) for number in range(len(known))}
    return len(wanted) == len(known) and set(wanted) == numbers != set(known)


@dataclass(frozen=True)
class Labelled:
    """Pictures whose labels are a model's classes.

    Attributes:
        source: the pictures.
        class_names: one for each logit.
        listing: the same pictures under the classes of the data, for `xcite.data.findings`.
        notes: what a person should know, one line each.
    """

    source: Source
    class_names: list[str]
    listing: Source
    notes: list[str]

    @property
    def present(self) -> np.ndarray:
        """The model's classes of which there are pictures, int64, in order."""
        return np.unique(self.source.labels)


def open_labelled(
    spec: str,
    known: Sequence[str] | None,
    count: int,
    *,
    channels: int,
    root: str | os.PathLike[str] | None = None,
    outside_root: bool = False,
    model: str = "the model",
    ignore_extra: bool = False,
) -> Labelled:
    """Validation pictures whose labels are the model's classes.

    Args:
        spec, root, outside_root: what `xcite.data.sources.open_source` takes.
        known: the model's class names; None when it names none.
        count: number of its logits.
        ignore_extra: leave out pictures of classes that the model does not know.

    Raises:
        XciteError: unreadable pictures, or classes that do not match.
    """
    listed = functools.partial(
        open_source,
        spec,
        root=root,
        channels=channels,
        split="validation",
        outside_root=outside_root,
    )
    source = listed()
    if isinstance(source, ListFile) and all(name.isdecimal() for name in source.class_names):
        # its numbers are places in the model's list
        names = list(known) if known else [str(number) for number in range(count)]
        placed = listed(classes=names)
        return Labelled(placed, names, source, list(placed.notes))
    return label(source, known, count, model=model, data=spec, ignore_extra=ignore_extra)


def label(
    source: Source,
    known: Sequence[str] | None,
    count: int,
    *,
    model: str = "the model",
    data: str = "the data",
    ignore_extra: bool = False,
) -> Labelled:
    """The same for pictures that are listed already; see `open_labelled`."""
    notes = list(source.notes)
    listing, wanted = source, list(source.class_names)
    if ignore_extra and known is not None:
        source, wanted, more = _of_known_classes(source, known, model)
        notes += more
    columns, note = match_classes(known, wanted, count=count, numbered=True, model=model, data=data)
    notes += [note] if note else []
    if columns is None:
        columns = np.arange(count)
    places = np.full(len(source.class_names), -1, np.int64)  # -1 has no pictures
    places[np.isin(source.class_names, wanted)] = columns
    names = list(known) if known else _names_of_unnamed(wanted, columns, count)
    return Labelled(Relabelled(source, places, names), names, listing, notes)


def _of_known_classes(
    source: Source, known: Sequence[str], model: str
) -> tuple[Source, list[str], list[str]]:
    """The pictures of classes that the model knows, those classes, and a note if there are more."""
    place = _places(known, source.class_names)
    unknown = [name for name in source.class_names if name not in place]
    if not unknown or _bare_numbers(known, source.class_names):
        return source, list(source.class_names), []
    wanted = [name for name in source.class_names if name in place]
    kept = np.flatnonzero([name in place for name in source.class_names])
    indices = np.flatnonzero(np.isin(source.labels, kept))
    if not len(indices):
        raise XciteError(f"{model} knows none of the classes {brief(unknown)}")
    lost = len(source) - len(indices)
    note = f"{lost:,} pictures of classes that {model} does not know are left out: {brief(unknown)}"
    return Subset(source, indices), wanted, [note]


def _names_of_unnamed(wanted: Sequence[str], columns: np.ndarray, count: int) -> list[str]:
    """Names for logits without any: those of the data, and numbers where the data have none."""
    names = [str(number) for number in range(count)]
    for name, column in zip(wanted, columns.tolist(), strict=True):
        names[column] = name
    return names


def given_classes(spec: str, count: int) -> list[str]:
    """Names that a person gives to a model's classes.

    Args:
        spec: "imagenet", or a file as `read_class_names` takes it.
        count: of the model's classes.

    Raises:
        XciteError: unreadable file, or another number of names.
    """
    names = imagenet_classes() if spec == "imagenet" else read_class_names(spec)
    if len(names) != count:
        raise XciteError(f"{spec} names {len(names)} classes, the weights have {count}")
    return names


def brief(names: Sequence[str], most: int = 12) -> str:
    """A list for a message: the first names and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
