"""Known sets of pictures below a folder, recognised by the names of folders and by what is in them.

All of them have ImageNet's classes or some of them: in class folders named by wnid (n01440764), or
by ImageNet's numbers 0 to 999 (ImageNet-V2). Which classes a set has is read from its folders, so
no table of the 200 classes of ImageNet-A or -R is needed.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from xcite.data.sources.layouts import kind_of
from xcite.data.sources.source import is_folder
from xcite.errors import XciteError

DEPTH = 5  # folders below the given one: Kaggle's val is ILSVRC/Data/CLS-LOC/val
REAL = "real.json"

# How the name of a set's folder or archive begins, or of a folder around it; lower case.
_TITLES = {
    r"imagenet[-_]?v2.*matched": "ImageNet-V2 (matched frequency)",
    r"imagenet[-_]?v2.*threshold": "ImageNet-V2 (threshold 0.7)",
    r"imagenet[-_]?v2.*top": "ImageNet-V2 (top images)",
    r"imagenet[-_]?v2": "ImageNet-V2",
    r"(imagenet[-_]?)?sketch": "ImageNet-Sketch",
    r"imagenet[-_]?100(?!\d)": "ImageNet-100",
    r"imagenet[-_]?(a|adversarial)(?![a-z])": "ImageNet-A",
    r"imagenet[-_]?(r|renditions?)(?![a-z])": "ImageNet-R",
    r"imagenette": "Imagenette",
    r"imagewoof": "Imagewoof",
    r"ilsvrc2012_img_val\.": "ImageNet",
}
_WNID = re.compile(r"n\d{8}")
_VALIDATION_PICTURE = re.compile(r"ILSVRC2012_val_\d{8}")
_NUMBERS = {str(number) for number in range(1000)}


@dataclass(frozen=True)
class KnownSet:
    """A set that was found.

    Attributes:
        title: what people call it.
        path: what to open.
        real: ReaL's label file, if the set is evaluated with it.
    """

    title: str
    path: Path
    real: Path | None = None


def find_sets(folder: str | os.PathLike[str]) -> list[KnownSet]:
    """The known sets in a folder and below it, by path; training parts are passed over.

    Raises:
        XciteError: no such folder, or nothing known in it.
    """
    top = Path(folder).expanduser()
    if not top.is_dir():
        raise XciteError(f"{folder}: no such folder")
    found: list[KnownSet] = []
    labels: list[Path] = []
    _look_into(top, top, DEPTH, found, labels)
    whole = [known for known in found if known.title == "ImageNet"]
    if any(known.path.is_dir() for known in whole):  # the official tar is the same, packed
        found = [known for known in found if known not in whole or known.path.is_dir()]
        whole = [known for known in whole if known.path.is_dir()]
    if labels:
        found += [KnownSet("ImageNet ReaL", known.path, labels[0]) for known in whole]
    if not found:
        raise XciteError(
            f"{folder}: no known set in it: class folders named by wnid (n01440764, as of ImageNet,"
            " -A, -R, -Sketch, -100, Imagenette) or by 0 to 999 (ImageNet-V2), or their archives"
        )
    return found


def _look_into(
    top: Path, place: Path, depth: int, found: list[KnownSet], labels: list[Path]
) -> None:
    folders, files = _contents(place)
    if _are_classes(folders) or _are_some_of_v2(place, top, folders):
        found.append(KnownSet(_title(place, top, folders), place))
        return
    if not folders and any(_VALIDATION_PICTURE.match(name) for name in files):
        found.append(KnownSet("ImageNet", place))
        return
    labels += [place / name for name in files if name.lower() == REAL]
    for name in files:
        title = _known_title(name)
        packed = kind_of(Path(name)) in ("tar", "zip")
        if title and packed and not _unpacked(name, folders):
            found.append(KnownSet(title, place / name))
    if depth:
        for name in folders:
            if not _is_training(name):
                _look_into(top, place / name, depth - 1, found, labels)


def _contents(place: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and files that are not hidden, sorted."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (folders if is_folder(entry) else files).append(entry.name)
    except OSError:  # a folder that cannot be read holds nothing known
        return [], []
    return sorted(folders), sorted(files)


def _are_classes(folders: list[str]) -> bool:
    if folders and all(_WNID.fullmatch(name) for name in folders):
        return True
    return set(folders) == _NUMBERS


def _are_some_of_v2(place: Path, top: Path, folders: list[str]) -> bool:
    """Whether these are folders of ImageNet-V2 of which some are missing."""
    if not folders or not _NUMBERS.issuperset(folders):
        return False
    return _title(place, top, folders).startswith("ImageNet-V2")


def _title(place: Path, top: Path, folders: list[str]) -> str:
    """What a folder of class folders is called, going by its own name and those around it."""
    for part in (place, *place.parents):
        if title := _known_title(part.name):
            return title
        if part == top:
            break
    if any(_VALIDATION_PICTURE.match(name) for name in _contents(place / folders[0])[1]):
        return "ImageNet"
    return str(place.relative_to(top)) if place != top else place.name


def _known_title(name: str) -> str | None:
    name = name.lower()
    return next((title for begins, title in _TITLES.items() if re.match(begins, name)), None)


def _unpacked(archive: str, folders: list[str]) -> bool:
    """Whether a folder beside the archive is the same set."""
    title = _known_title(archive)
    return any(_known_title(name) == title for name in folders)


def _is_training(name: str) -> bool:
    return re.split(r"[^a-z]", name.lower())[0] in ("train", "training")
