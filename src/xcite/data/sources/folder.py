"""Folders of class folders, and ImageNet's flat folder of validation pictures."""

import os
from collections.abc import Iterator
from pathlib import Path

from xcite.data.sources.answers import Answers, answers_beside
from xcite.data.sources.class_names import class_order
from xcite.data.sources.index import indexed
from xcite.data.sources.listing import LOOSE, Listed, Listing
from xcite.data.sources.source import (
    Found,
    State,
    identity,
    is_folder,
    read_file,
    state,
    state_of,
)
from xcite.data.sources.strays import stray_file, stray_folder
from xcite.errors import XciteError


class ImageFolder(Listed):
    """One folder per class, pictures anywhere below it; sorted by class, then path.

    Or pictures alone, where a table beside them says what they show (`answers_beside`).
    """

    def __init__(self, folder: Path, classes: list[str] | None) -> None:
        self._root = os.path.abspath(folder)
        listing = indexed("folder", self._root, [], lambda: _listed(self._root))
        super().__init__(listing, classes, str(folder))

    def read(self, index: int) -> bytes:
        return read_file(self.name(index))

    def name(self, index: int) -> str:
        return os.path.join(self._root, self._names[index])


def class_folders(root: str, found: Found | None = None) -> list[str]:
    """Names of the folders in ``root`` that can be classes, links to folders among them.

    Raises:
        XciteError: ``root`` cannot be read.
    """
    found = Found() if found is None else found
    names = []
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if not is_folder(entry):
                    _note_file(found, entry, entry.name)
                    if stray_file(entry.name) is None and not _is_lost(entry):
                        found.leave_out(LOOSE, entry.name)
                elif (kind := stray_folder(entry.name)) is not None:
                    found.leave_out(kind, entry.name)
                else:
                    names.append(entry.name)
    except OSError as error:
        raise XciteError(f"{root}: {error.strerror or error}") from error
    return class_order(names)


def _listed(root: str) -> Listing:
    found = Found()
    watched = {root: state_of(os.stat(root))}
    around = [root, *map(str, Path(os.path.realpath(root)).parents)]
    above = {identity(os.stat(place)) for place in around}
    names: list[str] = []
    of_class: list[str] = []
    empty: list[str] = []
    classes: dict[tuple[int, int], str] = {}
    folders = class_folders(root, found)
    loose = found.left_out.get(LOOSE)
    if loose and not folders and (answers := answers_beside(Path(root))) is not None:
        return _flat(root, answers, watched)
    for class_name in folders:
        itself = identity(os.stat(os.path.join(root, class_name)))
        if itself in above:
            found.leave_out("links that lead in a circle", class_name)
            continue
        if itself in classes:
            found.warnings.append(
                f"the class folders {classes[itself]!r} and {class_name!r} are the same folder"
            )
        classes[itself] = class_name
        members = sorted(_pictures_below(root, class_name, set(above), found, watched))
        if not members:
            empty.append(class_name)
        names += members
        of_class += [class_name] * len(members)
    if loose:
        found.warnings.append(f"{loose} pictures lie in no class folder and were left out")
    listing = Listing.of(names, of_class, classes=class_order(of_class), in_order=True)
    listing.empty, listing.found, listing.watched = empty, found, watched
    return listing


def _flat(root: str, answers: Answers, watched: dict[str, State]) -> Listing:
    """Pictures in one folder, with a table that says what they show."""
    names = [name for name in os.listdir(root) if stray_file(name) is None]
    listing = Listing.of(names, [answers.wnid(name) for name in names])
    listing.notes = [answers.note]
    listing.watched = {**watched, answers.origin: state(answers.origin)}
    return listing


def _pictures_below(
    root: str,
    folder: str,
    seen: set[tuple[int, int]],
    found: Found,
    watched: dict[str, State],
) -> Iterator[str]:
    """Paths from ``root``; links to folders are followed last, and only to folders not yet seen."""
    waiting, links = [folder], list[str]()
    while waiting or links:
        inside = waiting.pop() if waiting else links.pop(0)
        place = os.path.join(root, inside)
        try:
            about = os.stat(place)
            if identity(about) in seen:
                found.leave_out("linked folders that are listed already", inside)
                continue
            with os.scandir(place) as opened:
                entries = list(opened)
        except OSError as error:
            found.leave_out("folders that cannot be read", inside)
            found.warnings.append(f"{place}: {error.strerror or error}; left out")
            continue
        seen.add(identity(about))
        watched[place] = state_of(about)
        for entry in entries:
            name = entry.name
            # As os.walk does, a link counts as what it leads to.
            if not is_folder(entry):
                _note_file(found, entry, f"{inside}/{name}")
                if stray_file(name) is None and not _is_lost(entry):
                    yield os.path.join(inside, name)
            elif (kind := stray_folder(name)) is not None:
                found.leave_out(kind, f"{inside}/{name}")
            elif entry.is_symlink():
                links.append(os.path.join(inside, name))
            else:
                waiting.append(os.path.join(inside, name))
        links.sort()


def _note_file(found: Found, entry: os.DirEntry[str], shown: str) -> None:
    if (kind := stray_file(entry.name)) is not None:
        found.leave_out(kind, shown)
    elif _is_lost(entry):
        found.leave_out("links that lead nowhere", shown)


def _is_lost(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)
