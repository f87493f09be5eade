"""A listing of encoded pictures as arrays, and the source that reads from it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from xcite.data.decoding import SUFFIXES
from xcite.data.sources.class_names import class_order
from xcite.data.sources.source import Found, Names, State, fingerprint, state
from xcite.errors import XciteError

LOOSE = "pictures in no class folder"


@dataclass
class Listing:
    """Pictures as they lie on the disk, before it is asked which classes are wanted.

    Attributes:
        names: of the pictures.
        labels: int64 (n,), into ``classes``.
        classes: names of the classes that occur, in their order.
        places: int64 (n, k), where each picture lies in ``files``; k is 0 where names are paths.
        files: the archives that hold the pictures.
        parts: the splits that the archives hold, of which this is one; none where they have none.
        empty: classes that are there without a picture.
        options: how the archives are to be read.
        watched: files and folders, and the state that they had; another one makes this outdated.
    """

    names: Names
    labels: np.ndarray
    classes: list[str]
    places: np.ndarray
    files: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    found: Found = field(default_factory=Found)
    options: dict[str, str] = field(default_factory=dict)
    watched: dict[str, State] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        of_class: Sequence[str],
        places: Sequence[tuple[int, ...]] = (),
        *,
        classes: Sequence[str] = (),
        in_order: bool = False,
    ) -> "Listing":
        """Make one of a name, a class and a place for each picture.

        Args:
            classes: in the order of their labels; if empty they are sorted (`class_order`).
            in_order: keep the order of the pictures, instead of sorting by class, then name.
        """
        used = set(of_class)
        known = [name for name in classes if name in used] if classes else class_order(used)
        position = {name: label for label, name in enumerate(known)}
        labels = np.fromiter((position[name] for name in of_class), np.int64, len(of_class))
        found = np.array(places, np.int64).reshape(len(names), -1 if len(places) else 0)
        if in_order:
            return cls(Names(names), labels, known, found)
        numbers = labels.tolist()
        order = sorted(range(len(names)), key=lambda index: (numbers[index], names[index]))
        return cls(Names(names[index] for index in order), labels[order], known, found[order])


class Listed:
    """What sources of encoded pictures share.

    Attributes:
        parts: the splits that the archive has, of which this is one.
    """

    class_names: list[str]
    labels: np.ndarray
    notes: Sequence[str]
    found: Found

    def __init__(self, listing: Listing, classes: list[str] | None, spec: str) -> None:
        self._names = listing.names
        self._places = listing.places
        self._files = listing.files
        self.parts = listing.parts
        self.notes = listing.notes
        self.found = listing.found.copy()
        empty = [name for name in listing.empty if not classes or name not in classes]
        if empty:
            self.found.leave_out("empty class folders", empty[0], len(empty))
            shown = ", ".join(repr(name) for name in empty[:5]) + (", ..." if empty[5:] else "")
            self.found.warnings.append(f"no pictures in the class folders {shown}: left out")
        if not len(self._names):
            left = self.found.left_out_in_words()
            loose = self.found.left_out.get(LOOSE)
            if loose and len(self.found.left_out) == 1:
                raise XciteError(
                    f"{spec}: nothing says what its {loose:,} pictures show; give a folder of "
                    "pictures for every class, or a list of 'path label' lines (`xcite predict` "
                    "needs no labels)"
                )
            raise XciteError(
                f"{spec}: no pictures found ({', '.join(SUFFIXES[:4])}, ...)"
                + (f"; left out: {left}" if left else "")
            )
        self.class_names = classes or list(listing.classes)
        position = {name: label for label, name in enumerate(self.class_names)}
        unknown = sorted(set(listing.classes) - set(position))
        if unknown:
            raise XciteError(
                f"{spec}: class {unknown[0]!r} is not among the {len(position)} expected ones "
                f"({', '.join(self.class_names[:5])}{', ...' if len(position) > 5 else ''})"
            )
        order = np.array([position[name] for name in listing.classes], np.int64)
        self.labels = order[listing.labels]

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        raise NotImplementedError

    def name(self, index: int) -> str:
        raise NotImplementedError

    def files(self) -> Iterable[str]:
        return map(self.name, range(len(self)))

    def fingerprint(self) -> str:
        return fingerprint(self._names, self.labels, self.class_names)


class Archived(Listed):
    """What sources share whose files hold many pictures each; the first place is the file's."""

    called = "archive"

    def __init__(
        self, listing: Listing, classes: list[str] | None, spec: str, shown: Sequence[str] = ()
    ) -> None:
        """Args:
        shown: what messages call the files, where that is not their path.
        """
        super().__init__(listing, classes, spec)
        self._shown = shown or listing.files
        self._states = [listing.watched[path] for path in self._files]

    def refuse_changed(self, index: int) -> None:
        """Raise XciteError if a picture's file is no longer the one that was listed."""
        number = int(self._places[index, 0])
        if state(self._files[number]) != self._states[number]:
            raise XciteError(
                f"{self.name(index)}: the {self.called} has changed since it was listed"
            )

    def name(self, index: int) -> str:
        return f"{self._shown[int(self._places[index, 0])]}:{self._names[index]}"

    def files(self) -> Iterable[str]:
        return self._files
