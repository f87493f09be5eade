"""Zip archives, read in place."""

import os
from collections.abc import Sequence
from pathlib import PurePosixPath

from xcite.data.formats import is_picture
from xcite.data.sources.index import indexed
from xcite.data.sources.layouts import choose_part
from xcite.data.sources.listing import Archived, Listing
from xcite.data.sources.source import Found, state
from xcite.data.sources.strays import stray_file, stray_folder
from xcite.data.zip_members import DEFLATED, STORED, ZipMember, read_member, zip_members
from xcite.errors import XciteError

_ENCODINGS = ("utf-8", "gb18030", "cp437")  # what archivers wrote before they said so


class ZipArchives(Archived):
    """Pictures stored or deflated in zip archives, as if these were unpacked into one folder.

    The class is the first folder below those that all pictures share. Nothing is ever extracted.
    """

    def __init__(
        self,
        spec: str,
        archives: Sequence[str],
        classes: list[str] | None,
        outside_root: bool = False,
        split: str = "train",
    ) -> None:
        paths = [os.path.abspath(archive) for archive in archives]
        options = [paths, outside_root, split]
        listing = indexed(
            "zip", paths[0], options, lambda: _listed(paths, outside_root, split, spec)
        )
        super().__init__(listing, classes, spec)

    def read(self, index: int) -> bytes:
        number, *place = (int(value) for value in self._places[index])
        self.refuse_changed(index)
        try:
            return read_member(self._files[number], *place)
        except XciteError as error:
            raise XciteError(f"{self.name(index)}: {error}") from error


def _listed(paths: list[str], outside_root: bool, split: str, spec: str) -> Listing:
    found = Found()
    watched = {path: state(path) for path in paths}
    names: list[str] = []
    places: list[tuple[int, ...]] = []
    notes: list[str] = []
    for number, path in enumerate(paths):
        members = list(zip_members(path))
        encoding = _encoding(members)
        if encoding != "utf-8":
            notes.append(f"{path}: names are not in UTF-8; read as {encoding}")
        for member in members:
            name = member.name.decode("utf-8" if member.is_utf8 else encoding, "surrogateescape")
            name = name.replace("\\", "/") if "/" not in name else name
            if _is_picture(name, member, found, path, outside_root):
                names.append(str(PurePosixPath(name)))
                places.append((number, *member[2:7]))
    part = choose_part(names, split, spec)
    kept = [place for place in range(len(names)) if part.kept is None or part.kept[place]]
    of_class = _classes([names[place] for place in kept], spec)
    listing = Listing.of([names[p] for p in kept], of_class, [places[p] for p in kept])
    listing.files, listing.watched, listing.found = paths, watched, found
    listing.notes, listing.parts = [*notes, *part.notes], list(part.names)
    return listing


def _encoding(members: Sequence[ZipMember]) -> str:
    """The first encoding in which all names can be read that do not say that they are UTF-8."""
    for encoding in _ENCODINGS[:-1]:
        try:
            for member in members:
                if not member.is_utf8:
                    member.name.decode(encoding)
            return encoding
        except UnicodeDecodeError:
            continue
    return _ENCODINGS[-1]


def _is_picture(name: str, member: ZipMember, found: Found, path: str, outside_root: bool) -> bool:
    *folders, file = name.split("/")
    strays = [kind for kind in map(stray_folder, folders) if kind and kind != "hidden folders"]
    strays += ["hidden folders" for f in folders if f.startswith(".") and f not in (".", "..")]
    if strays:
        found.leave_out(f"files in {strays[0]}", name)
        return False
    if not is_picture(file) or file.startswith("."):
        found.leave_out(stray_file(file) or "hidden files", name)
        return False
    if not outside_root and (name.startswith("/") or ".." in folders or ":" in name[:2]):
        raise XciteError(
            f"{path}: the name {name!r} leads out of the archive; if you trust it, "
            "set data.outside_root to true"
        )
    if member.encrypted or member.method not in (STORED, DEFLATED):
        why = "encrypted" if member.encrypted else f"packed by method {member.method}"
        raise XciteError(f"{path}: {name!r} is {why}; unpack the archive and give its folder")
    return True


def _classes(names: Sequence[str], spec: str) -> list[str]:
    """The class of each picture: the first folder in which their paths differ."""
    folders = {name.rpartition("/")[0] for name in names}
    if "" in folders:
        loose = next(name for name in names if "/" not in name)
        raise XciteError(
            f"{spec}: {loose!r} lies in no class folder; members must be named <class>/<picture>"
        )
    parts = [folder.split("/") for folder in folders]
    depth, most = 0, min(map(len, parts), default=1) - 1
    while depth < most and len({part[depth] for part in parts}) == 1:
        depth += 1
    return [name.split("/")[depth] for name in names]
