"""Pictures as a command line names them: files, folders, patterns, archives, standard input."""

import functools
import glob
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from xcite.data.decoding import Picture
from xcite.data.formats import is_picture
from xcite.data.loose_pictures import pictures_below
from xcite.data.sources import Found, Source, open_source
from xcite.data.sources.layouts import kind_of
from xcite.data.sources.strays import stray_file
from xcite.errors import XciteError
from xcite.regular_files import LARGEST_READ

STDIN = "-"
Opener = Callable[..., Source]


@dataclass(frozen=True)
class Given:
    """One picture, or the reason why there is none.

    Attributes:
        name: what the picture is called.
        picture: a path, encoded bytes, pixels or a Pillow picture; None where ``error`` says what
            is wrong.
    """

    name: str
    picture: Picture | None
    error: str | None = None


def given_pictures(
    arguments: Iterable[str], found: Found, *, channels: int = 3, columns: str | None = None
) -> Iterator[Given]:
    """The pictures of each argument in turn; nothing is listed before its turn comes.

    An argument is a file, a folder (all pictures below it, by name), a pattern such as
    ``photos/**/*.jpg``, an archive or list that `xcite.data.sources.open_source` reads, "digits",
    or "-" for one encoded picture on standard input. An existing path wins over a pattern. What
    cannot be read becomes a `Given` with an error, so the others still have their turn.

    Args:
        found: counts what is left out of folders.
        channels: of the digits.
        columns: of tables, see `xcite.data.sources.open_source`.
    """
    opened = functools.partial(open_source, channels=channels, columns=columns)
    for argument in arguments:
        try:
            yield from _of_argument(argument, found, opened)
        except XciteError as error:
            yield Given(argument, None, str(error))


def of_source(source: Source) -> Iterator[Given]:
    """The pictures of a source that is listed already."""
    for index in range(len(source)):
        name = source.name(index)
        try:
            yield Given(name, source.read(index))
        except XciteError as error:
            yield Given(name, None, str(error))


def _of_argument(argument: str, found: Found, opened: Opener) -> Iterator[Given]:
    if argument == STDIN:
        yield Given(STDIN, _standard_input())
        return
    if argument == "digits" and not os.path.lexists(argument):
        yield from of_source(opened(argument, split="validation"))
    else:
        yield from pictures_at(argument, found, opened)


def pictures_at(place: str, found: Found, opened: Opener = open_source) -> Iterator[Given]:
    """The pictures of a file, folder, archive or list; where there is none, of a pattern.

    Args:
        found: counts what is left out of folders.
        opened: opens archives and lists, as `xcite.data.sources.open_source`.

    Raises:
        XciteError: a folder without pictures, a pattern that nothing matches.
    """
    path = os.path.expanduser(place)
    if glob.has_magic(path) and not os.path.lexists(path):
        yield from _of_pattern(path, found, opened)
    elif os.path.lexists(path):
        yield from _of_path(path, found, opened)
    else:
        yield Given(place, path)  # decoding says that there is no such file


def _of_pattern(pattern: str, found: Found, opened: Opener) -> Iterator[Given]:
    """What matches; files of any kind only where the pattern says which: ``*.ico``, not ``*``."""
    suffix = Path(pattern).suffix
    wanted = is_picture if suffix == "" or glob.has_magic(suffix) else _any_file
    empty = True
    for match in _matching(pattern, wanted):
        empty = False
        if os.path.isdir(match) or wanted(match):
            yield from _of_path(match, found, opened)
        else:
            found.leave_out(stray_file(os.path.basename(match)) or "other files", match)
    if empty:
        raise XciteError(f"{pattern}: no such file, and none that matches it as a pattern")


def _matching(pattern: str, wanted: Callable[[str], bool]) -> Iterator[str]:
    """Paths in order; below ``**`` files alone, and links that lead in a circle are not followed,
    as `glob.glob` would."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from sorted(glob.iglob(pattern))
        return
    first = parts.index("**")
    for top in sorted(glob.iglob(os.path.join(*parts[:first]) if first else ".")):
        if os.path.isdir(top):
            for path in pictures_below(top, Found(), wanted):
                if _fits(Path(path).relative_to(top).parts, parts[first:]):
                    yield path if first else path.removeprefix("./")


def _fits(names: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_fits(names[start:], pattern[1:]) for start in range(len(names) + 1))
    return bool(names) and fnmatch(names[0], pattern[0]) and _fits(names[1:], pattern[1:])


def _any_file(name: str) -> bool:
    return True


def _of_path(path: str, found: Found, opened: Opener) -> Iterator[Given]:
    if os.path.isdir(path):
        empty = True
        for picture in pictures_below(path, found):
            empty = False
            yield Given(picture, picture)
        if empty:
            raise XciteError(f"{path}: no pictures in this folder or below it")
    elif kind_of(Path(path)) is not None:
        source = opened(path)
        yield from of_source(source)
        if getattr(source, "parts", ()):  # what is no training picture is asked about, too
            yield from of_source(opened(path, split="validation"))
    else:
        yield Given(path, path)


def _standard_input() -> bytes:
    data = sys.stdin.buffer.read(LARGEST_READ + 1)
    if not data:
        raise XciteError("-: standard input is empty; it takes one encoded picture")
    if len(data) > LARGEST_READ:
        raise XciteError(f"-: more than the {LARGEST_READ >> 20} MiB a picture may have")
    return data
