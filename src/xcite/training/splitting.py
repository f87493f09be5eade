"""Which training pictures are held out for validation, drawn once and kept with the run."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xcite.control_characters import visible
from xcite.data import near_duplicates
from xcite.data.sources import Source, Subset, common_folder
from xcite.errors import XciteError
from xcite.randomness import generator
from xcite.regular_files import read_regular
from xcite.whole_files import write_text

MOST_COMPARED = 50_000  # pictures that are looked at for near-duplicates
_LONGEST = 1 << 28  # bytes of a split.json


@dataclass(frozen=True)
class Split:
    """Training and validation pictures of one source.

    Attributes:
        held_out: names of the validation pictures, from the folder that all have in common.
        notes: what people should know.
    """

    train: Source
    validation: Source | None
    held_out: list[str]
    notes: list[str]

    def write(self, file: Path) -> None:
        """Keep the names, one a line."""
        write_text(file, json.dumps({"held_out": self.held_out}, indent=0) + "\n")


def draw(source: Source, share: float, seed: int, *, channels: int = 3) -> Split:
    """Hold out a share of every class, near-duplicates together.

    Whole groups are drawn until a class has its share; no more than half of a class is ever taken,
    so a class whose pictures all look alike keeps them for training.
    """
    count = len(source)
    compared = count <= MOST_COMPARED
    group = near_duplicates.groups(source, channels=channels) if compared else np.arange(count)
    held = _hold_out(source.labels, group, len(source.class_names), share, seed)
    names = relative_names(source)
    alike = count - len(np.unique(group))
    notes = [
        f"{held.sum():,} of {count:,} pictures are held out for validation (data.holdout {share:g},"
        f" seed {seed}, class by class); the run's split.json names them"
    ]
    if alike:
        notes.append(f"{alike:,} pictures are near-duplicates of others and stay with them")
    if not compared:
        notes.append(
            f"of more than {MOST_COMPARED:,} pictures near-duplicates are not looked for: some may "
            "be on both sides"
        )
    return _parted(source, held, names, notes)


def read(source: Source, path: Path) -> Split | None:
    """The split of ``source`` that a file keeps; None where there is none.

    Pictures that are new since then are training pictures.

    Raises:
        XciteError: a damaged file, or one of other pictures.
    """
    if not path.is_file():
        return None
    try:
        known = json.loads(read_regular(path, size=_LONGEST))["held_out"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise XciteError(f"{path} cannot be read ({error}); is it damaged?") from error
    if not isinstance(known, list) or not all(isinstance(name, str) for name in known):
        raise XciteError(f"{path} holds no list of names; is it damaged?")
    names = relative_names(source)
    wanted = set(known)
    held = np.fromiter((name in wanted for name in names), bool, len(names))
    missing = len(wanted.difference(names))
    if known and not held.any():
        raise XciteError(
            f"none of the {len(known):,} pictures that {path} holds out is there; the first was "
            f"{visible(known[0])}: give the data that the run was trained on"
        )
    notes = [f"{held.sum():,} of {len(names):,} pictures are held out for validation by {path}"]
    if missing:
        notes.append(f"{missing:,} pictures that {path} names are gone")
    return _parted(source, held, names, notes)


def relative_names(source: Source) -> list[str]:
    """Names of all pictures from the folder that they have in common, with forward slashes."""
    start = len(common_folder(source))
    return [source.name(index)[start:].replace(os.sep, "/") for index in range(len(source))]


def _parted(source: Source, held: np.ndarray, names: Sequence[str], notes: list[str]) -> Split:
    chosen = np.flatnonzero(held)
    validation = Subset(source, chosen) if len(chosen) else None
    if validation is None:
        notes = ["no picture could be held out for validation: too few, or too alike"]
    return Split(
        Subset(source, np.flatnonzero(~held)),
        validation,
        [names[index] for index in chosen.tolist()],
        notes,
    )


def _hold_out(
    labels: np.ndarray, group: np.ndarray, classes: int, share: float, seed: int
) -> np.ndarray:
    """Which pictures are held out, bool (n,)."""
    count = np.bincount(labels, minlength=classes)
    quota = np.maximum(np.round(share * count).astype(int), count > 2)
    most = np.maximum(count // 2, quota)
    order = generator(seed, "holdout").permutation(len(labels))
    # The members of a group follow one another, the groups in the order of their first member.
    first = np.full(len(labels), len(labels))
    np.minimum.at(first, group[order], np.arange(len(order)))
    order = order[np.argsort(first[group[order]], kind="stable")]
    taken: Counter[int] = Counter()
    held = np.zeros(len(labels), bool)
    for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        added = Counter(labels[members].tolist())
        if all(taken[c] < quota[c] and taken[c] + n <= most[c] for c, n in added.items()):
            held[members] = True
            taken.update(added)
    return held
