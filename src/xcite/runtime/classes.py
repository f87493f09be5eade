"""Which of a model's classes are those of the data: decided by name, in one place."""

import functools
import os
import re
from collections.abc import Sequence

import numpy as np

from xcite.data.sources import ListFile, Source, open_source
from xcite.errors import XciteError
from xcite.weights.identification import imagenet_classes


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

    A model may know more classes than are wanted.

    Args:
        known: the model's class names, in the order of its logits; None when it names none.
        wanted: class names of the data.
        count: number of the model's logits, if it is known.
        numbered: take the bare numbers 0, 1, ... of the data for the model's classes in order,
            whatever their names. Right where a person reads the note beside the figures; a teacher
            that is no match would teach wrong classes unseen.
        model, data: what messages call the two.

    Returns:
        int64 (len(wanted),), or None when both have the same classes in the same order.

    Raises:
        XciteError: with both lists, when the model does not know a class of the data; or names are
            missing and the numbers of classes differ.
    """
    if known is None:
        if count is not None and count != len(wanted):
            raise XciteError(
                f"{model} names no classes and has {count}, {data} has {len(wanted)} "
                f"({brief(wanted)}); use a model trained on these classes"
            )
        return None, f"{model} names no classes: taken to be those of {data}, in this order"
    if list(known) == list(wanted):
        return None, None
    place = {name: index for index, name in enumerate(known)}
    unknown = [name for name in wanted if name not in place]
    if unknown:
        if _imagenet_folders(known, wanted) or (numbered and _bare_numbers(known, wanted)):
            first = brief(wanted, 2)
            return None, f"{first} of {data}: taken to be the classes of {model}, in this order"
        raise XciteError(
            f"{model} does not know {brief(unknown)}; its classes: {brief(known)}; "
            f"{data}: {brief(wanted)}"
        )
    note = f"{data} has {len(wanted)} of the {len(known)} classes of {model}"
    if len(known) == len(wanted):
        note = f"the classes of {model} are in another order and were matched by name"
    return np.array([place[name] for name in wanted], np.int64), note


def same_in_order(known: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether ``wanted`` are the model's classes in the same order, maybe under other names.

    Other names are ImageNet's folders n01440764 to n15075141 beside the names of its classes, and
    the bare numbers of a list file beside any names that are not such numbers themselves.
    """
    same = list(known) == list(wanted)
    return same or _imagenet_folders(known, wanted) or _bare_numbers(known, wanted)


def _imagenet_folders(known: Sequence[str], wanted: Sequence[str]) -> bool:
    folders = list(wanted) == sorted(wanted) and all(re.fullmatch(r"n\d{8}", n) for n in wanted)
    return folders and len(known) == len(wanted) and list(known) == imagenet_classes()


def _bare_numbers(known: Sequence[str], wanted: Sequence[str]) -> bool:
    numbers = [str(number) for number in range(len(known))]
    return list(wanted) == numbers and set(known) != set(numbers)


def open_labelled(
    spec: str,
    known: Sequence[str] | None,
    count: int,
    *,
    channels: int,
    root: str | os.PathLike[str] | None = None,
    outside_root: bool = False,
    model: str = "the model",
) -> tuple[Source, list[str], str | None]:
    """Validation pictures whose labels are the model's classes.

    Args:
        spec, root, outside_root: what `xcite.data.sources.open_source` takes.
        known: the model's class names; None when it names none.
        count: number of its logits.

    Returns:
        The pictures, a name for each logit, and a note for people.

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
    if isinstance(source, ListFile):  # its numbers are places in the model's list
        names = list(known) if known else [str(number) for number in range(count)]
        return listed(classes=names), names, None
    columns, note = match_classes(
        known, source.class_names, count=count, numbered=True, model=model, data=spec
    )
    names = list(known) if known else list(source.class_names)
    return (source if columns is None else listed(classes=names)), names, note


def brief(names: Sequence[str], most: int = 12) -> str:
    """A list for a message: the first names and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
