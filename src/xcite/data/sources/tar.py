"""Tar archives, read in place by offset: class folders, class tars and WebDataset samples."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from xcite.data.formats import is_picture
from xcite.data.sources.answers import answers_beside, missing_answers
from xcite.data.sources.class_names import are_wnids
from xcite.data.sources.index import indexed
from xcite.data.sources.layouts import Part, choose_part
from xcite.data.sources.listing import Archived, Listing
from xcite.data.sources.samples import Member, Samples
from xcite.data.sources.source import Found, read_file, state
from xcite.data.sources.strays import stray_file, stray_folder
from xcite.data.tar_members import tar_members
from xcite.errors import XciteError

_NUMBERED = re.compile(r".*\d")  # train-0001, 00000: shards are counted, classes have names


class TarShards(Archived):
    """Uncompressed tar archives, read in place by offset.

    The class of a picture is what a `.cls` or `.json` member beside it says (WebDataset), the
    folder that it lies in, or the name of its tar where that is one of class tars. Pictures stay in
    the order of the archives where folders give the class, else they are sorted by class, then
    name. Nothing is ever extracted, so member names are only names.
    """

    def __init__(
        self,
        spec: str,
        shards: Sequence[str],
        classes: list[str] | None,
        outside_root: bool = False,
        split: str = "train",
        shown: Sequence[str] = (),
    ) -> None:
        """Args:
        shown: what messages call the archives, where that is not their path.
        """
        paths = [os.path.abspath(shard) for shard in shards]
        # Plain tars have always kept their order, and runs and caches rely on it.
        in_order, beside = not shown, Path([*shown, *paths][0]).parent
        options = [paths, outside_root, split, in_order, str(beside)]
        listing = indexed(
            *("tar", paths[0], options),
            lambda: _listed(paths, outside_root, split, spec, in_order, beside),
        )
        super().__init__(listing, classes, spec, shown)

    def read(self, index: int) -> bytes:
        shard, offset, size = (int(value) for value in self._places[index])
        data = read_file(self._files[shard], offset, size)
        if len(data) != size:
            raise XciteError(f"{self.name(index)}: the archive has become shorter since listing")
        self.refuse_changed(index)
        return data


def _listed(
    paths: list[str], outside_root: bool, split: str, spec: str, in_order: bool, beside: Path
) -> Listing:
    """Args:
    in_order: keep the order of the archives, where folders give the class and nothing else.
    beside: the folder in which class names and answers are looked for.
    """
    found = Found()
    watched = {path: state(path) for path in paths}
    samples = Samples(paths)
    pictures: list[Member] = []
    nested: list[str] = []
    for member in _members(paths, found, nested):
        name = member[0]
        if samples.add(member):
            continue
        if name.rpartition("/")[2].startswith(".") or not is_picture(name):
            found.leave_out(stray_file(name.rpartition("/")[2]) or "hidden files", name)
        elif any(stray_folder(part) == "system folders" for part in name.split("/")[:-1]):
            found.leave_out("pictures in system folders", name)
        elif not outside_root and (name.startswith("/") or ".." in name.split("/")):
            raise XciteError(
                f"{paths[member[1]]}: the name {name!r} leads out of the archive; if you trust it, "
                "set data.outside_root to true"
            )
        else:
            pictures.append(member)
    part = choose_part([name for name, *_ in pictures], split, spec)
    pictures = _kept(pictures, part)
    listing = (
        samples.listing(pictures, beside)
        or _by_folder(pictures, in_order and not nested and not part.names)
        or _by_archive(pictures, paths)
        or _by_answers(pictures, paths, beside)
    )
    listing.files, listing.watched = paths, {**watched, **listing.watched}
    listing.found, listing.notes = found, [*listing.notes, *part.notes]
    listing.parts = list(part.names)
    return listing


def _members(paths: Sequence[str], found: Found, nested: list[str]) -> Iterator[Member]:
    """All members; those of the tars within the tars, ``nested``, are called "<tar>/<name>"."""
    for number, path in enumerate(paths):
        for name, offset, size in tar_members(path, left_out=found.leave_out):
            if not name.lower().endswith(".tar"):
                yield name, number, offset, size
                continue
            nested.append(name)
            stem = name[:-4].rpartition("/")[2]
            for inner, start, length in tar_members(path, offset, size, left_out=found.leave_out):
                yield f"{stem}/{inner.rpartition('/')[2]}", number, start, length


def _kept(pictures: list[Member], part: Part) -> list[Member]:
    if part.kept is None:
        return pictures
    return [picture for picture, keep in zip(pictures, part.kept, strict=True) if keep]


def _class_folder(name: str) -> str:
    """The folder that a member lies in; "" for none."""
    folder = name.rpartition("/")[0].rpartition("/")[2]
    return "" if folder in (".", "..") else folder


def _by_folder(pictures: Sequence[Member], in_order: bool) -> Listing | None:
    folders = [_class_folder(name) for name, *_ in pictures]
    if not all(folders):
        return None
    names, places = [p[0] for p in pictures], [p[1:] for p in pictures]
    return Listing.of(names, folders, places, in_order=in_order)


def _by_archive(pictures: Sequence[Member], paths: Sequence[str]) -> Listing | None:
    """Flat tars that are named as their class, such as n01440764.tar."""
    stems = [Path(path).stem for path in paths]
    named = are_wnids(stems) or not any(_NUMBERED.fullmatch(stem) for stem in stems)
    if len(paths) < 2 or not named or any(_class_folder(name) for name, *_ in pictures):
        return None
    of_class = [stems[number] for _, number, *_ in pictures]
    names = [
        f"{name_of_class}/{name.rpartition('/')[2]}"
        for name_of_class, (name, *_) in zip(of_class, pictures, strict=True)
    ]
    return Listing.of(names, of_class, [p[1:] for p in pictures])


def _by_answers(pictures: Sequence[Member], paths: Sequence[str], beside: Path) -> Listing:
    """Flat validation pictures, with a table beside the archive that says what they show.

    Raises:
        XciteError: no such table, or pictures that are not in it.
    """
    loose = next(p for p in pictures if not _class_folder(p[0]))
    answers = answers_beside(beside)
    if answers is None:
        raise XciteError(
            f"{paths[loose[1]]}: {loose[0]!r} lies in no class folder; "
            f"members must be named <class>/<picture>, have a .cls or .json member beside them, or "
            f"{missing_answers()}"
        )
    of_class = [answers.wnid(name) for name, *_ in pictures]
    names = [
        f"{wnid}/{name.rpartition('/')[2]}"
        for wnid, (name, *_) in zip(of_class, pictures, strict=True)
    ]
    listing = Listing.of(names, of_class, [p[1:] for p in pictures])
    listing.notes, listing.watched = [answers.note], {answers.origin: state(answers.origin)}
    return listing
