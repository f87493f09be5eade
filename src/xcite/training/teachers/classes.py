"""Which of a teacher's classes a student's classes are."""

import re
from collections.abc import Sequence

import numpy as np

from xcite.errors import XciteError
from xcite.weights.opening import imagenet_classes


def match_classes(
    teacher: str, theirs: Sequence[str] | None, count: int | None, ours: Sequence[str]
) -> tuple[np.ndarray | None, str | None]:
    """The teacher's class for each of the student's, by name, and a note for people.

    A teacher may know more classes than the student: only the student's are asked for.

    Args:
        theirs: the teacher's class names; None when its file has none.
        count: number of the teacher's logits, if known.

    Returns:
        int64 (len(ours),), or None when both have the same classes in the same order.

    Raises:
        XciteError: with both lists, when a class of the student's is unknown to the teacher; or
            names are missing and the numbers differ.
    """
    if theirs is None:
        if count is not None and count != len(ours):
            raise XciteError(
                f"teacher {teacher} names no classes and has {count}, the student has "
                f"{len(ours)} ({_brief(ours)}); use a teacher trained on these classes"
            )
        return None, f"teacher {teacher} names no classes: taken to be the student's, in this order"
    if (
        len(theirs) == len(ours)
        and list(ours) == sorted(ours)
        and all(re.fullmatch(r"n\d{8}", name) for name in ours)
        and list(theirs) == imagenet_classes()
    ):
        return None, "ImageNet's folders n01440764, ... are its classes in their usual order"
    place = {name: index for index, name in enumerate(theirs)}
    unknown = [name for name in ours if name not in place]
    if unknown:
        raise XciteError(
            f"the teacher {teacher} does not know {_brief(unknown)}; its classes: "
            f"{_brief(theirs)}; the student's: {_brief(ours)}"
        )
    if list(theirs) == list(ours):
        return None, None
    note = f"of the teacher's {len(theirs)} classes the student's {len(ours)} are used"
    if len(theirs) == len(ours):
        note = "the teacher's classes are in another order and were matched by name"
    return np.array([place[name] for name in ours], np.int64), note


def _brief(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
