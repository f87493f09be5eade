"""ImageNet's archives to class folders or tar shards, resumable, whole or not at all.

Everything is listed first, in place, archives within archives included; then copied into
``DEST.part``, counted, and renamed to ``DEST``. A second run goes on where the first one stopped.
"""

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xcite.data.findings import describe
from xcite.data.sources import Found
from xcite.data.sources.answers import WNID as _CLASS
from xcite.data.sources.answers import Answers, read_answers, read_devkit
from xcite.data.sources.source import read_file
from xcite.data.sources.strays import stray_file, stray_folder
from xcite.data.tar_members import tar_members
from xcite.errors import XciteError
from xcite.whole_files import whole_file, write_text

OFFICIAL = {"classes": 1000, "train": 1_281_167, "val": 50_000}
PICTURES_PER_SHARD = 10_000

_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_PLAN = "prepared.json"
_FORMAT = tarfile.USTAR_FORMAT

Progress = Callable[[str, int, int], None]
"""Called with (what is going on, how many are done, how many in all; 0 where unknown)."""


@dataclass(frozen=True)
class Picture:
    """Where a picture lies now, and the class and file name that it will have."""

    archive: str
    offset: int
    size: int
    class_name: str
    file: str


class Listed:
    """One part's pictures in their archives, as a `Source` to be described.

    Attributes:
        pictures: in the order in which they are written.
        found: what is left out of the archives.
    """

    def __init__(self, pictures: list[Picture], found: Found) -> None:
        self.pictures = pictures
        self.found = found
        self.notes: Sequence[str] = ()
        self.class_names = sorted({picture.class_name for picture in pictures})
        position = {name: label for label, name in enumerate(self.class_names)}
        self.labels = np.array([position[picture.class_name] for picture in pictures], np.int64)

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int) -> bytes:
        picture = self.pictures[index]
        return read_file(picture.archive, picture.offset, picture.size)

    def name(self, index: int) -> str:
        return f"{self.pictures[index].archive}:{self.pictures[index].file}"

    def fingerprint(self) -> str:
        return _hash({"": self.pictures})

    def files(self) -> Iterable[str]:
        return {picture.archive: None for picture in self.pictures}


def prepare_imagenet(
    destination: Path,
    *,
    train: Sequence[Path],
    val: Sequence[Path],
    devkit: Path | None = None,
    val_list: Path | None = None,
    layout: str = "folders",
    per_shard: int = PICTURES_PER_SHARD,
    progress: Progress = lambda *_: None,
    announce: Callable[[str, list[str]], None] = lambda *_: None,
) -> dict[str, int]:
    """Write ``destination`` with train and val as folders or shards.

    Args:
        train: the official tar of class tars, or tars of class folders (the sorted 'light' parts).
        val: tars of pictures, flat (then `devkit` or `val_list` says what they show) or in folders.
        devkit: the official development kit; needs SciPy to read its table.
        val_list: Kaggle's LOC_val_solution.csv or lines of ``name wnid`` instead of the kit.
        announce: called once for each part, before anything is written, with its name and lines
            that say what was found in it and what is left out.
        layout: "folders" gives ``train/<wnid>/<picture>``, "shards" ``train-0000.tar`` and so on.

    Returns:
        Numbers of classes, of train and of val pictures.

    Raises:
        XciteError: unreadable or hostile archives, counts that do not fit, a full disk, or a
            destination that holds something else. ``destination`` does not appear then.
    """
    if layout not in ("folders", "shards"):
        raise XciteError(f"unknown layout {layout!r}; choose folders or shards")
    if per_shard < 1:
        raise XciteError("a shard holds at least one picture")
    answers: Answers | None = None
    if devkit is not None and val_list is not None:
        raise XciteError("give --devkit or --val-list, not both: each says what val pictures show")
    if devkit is not None:
        answers = read_devkit(devkit)
    elif val_list is not None:
        answers = read_answers(val_list)
    found = {"train": Found(), "val": Found()}
    splits = {
        "train": _listed_train(train, found["train"], progress),
        "val": _listed_val(val, answers, found["val"], progress),
    }
    counts = _check(splits, answers)
    for split, pictures in splits.items():
        announce(split, describe(Listed(pictures, found[split])))
    plan = counts | {"layout": layout, "per_shard": per_shard, "listing": _hash(splits)}
    if destination.exists():
        if _plan_of(destination) == plan:
            return counts
        raise XciteError(f"{destination} exists already; give a folder that does not")
    aside = destination.with_name(destination.name + ".part")
    if aside.exists() and _plan_of(aside) != plan:
        raise XciteError(f"{aside} was begun from other archives or options; remove it first")
    _check_space(splits, aside)
    write_text(aside / _PLAN, json.dumps(plan, indent=2) + "\n")
    write = _write_folders if layout == "folders" else _write_shards
    for split, pictures in splits.items():
        write(aside, split, pictures, per_shard, progress)
        _verify(aside, split, pictures, layout)
    if hasattr(os, "sync"):
        os.sync()  # once for all, instead of once for each of a million pictures
    aside.rename(destination)
    return counts


# --- listing ------------------------------------------------------------------------------------


def _listed_train(archives: Sequence[Path], found: Found, progress: Progress) -> list[Picture]:
    pictures: list[Picture] = []
    for archive in archives:
        for name, offset, size in tar_members(archive, left_out=found.leave_out):
            *folders, file = _parts(archive, name)
            if _is_stray(folders, file, name, found, besides=".tar"):
                continue
            if file.endswith(".tar"):
                class_name = _fitting(_CLASS, file.removesuffix(".tar"), archive, name)
                for inner, start, length in tar_members(
                    archive, offset, size, left_out=found.leave_out
                ):
                    *inner_folders, inner_file = _parts(archive, inner)
                    if not _is_stray(inner_folders, inner_file, f"{name}/{inner}", found):
                        pictures.append(_picture(archive, start, length, class_name, inner_file))
                progress("listing train", len(pictures), 0)
            elif folders:
                pictures.append(_picture(archive, offset, size, folders[-1], file))
            else:
                raise XciteError(f"{archive}: {name!r} lies in no class folder and no class tar")
    progress("listing train", len(pictures), len(pictures))
    return pictures


def _listed_val(
    archives: Sequence[Path], answers: Answers | None, found: Found, progress: Progress
) -> list[Picture]:
    pictures: list[Picture] = []
    for archive in archives:
        for name, offset, size in tar_members(archive, left_out=found.leave_out):
            *folders, file = _parts(archive, name)
            if _is_stray(folders, file, name, found):
                continue
            if answers is not None:
                class_name = answers.wnid(file)
            elif folders:
                class_name = folders[-1]
            else:
                raise XciteError(
                    f"{archive}: {file} lies in no class folder; "
                    "give --devkit or --val-list, which says what it shows"
                )
            pictures.append(_picture(archive, offset, size, class_name, file))
    progress("listing val", len(pictures), len(pictures))
    return pictures


def _is_stray(
    folders: Sequence[str], file: str, name: str, found: Found, besides: str = "/"
) -> bool:
    """Whether a member is no picture of the data set; counted if so.

    Args:
        besides: an ending of files that are wanted, too.
    """
    kind = next(filter(None, map(stray_folder, folders)), None)
    if kind is None and not file.endswith(besides):
        kind = stray_file(file)
    if kind is not None:
        found.leave_out(kind, name)
    return kind is not None


def _picture(archive: Path, offset: int, size: int, class_name: str, file: str) -> Picture:
    _fitting(_CLASS, class_name, archive, class_name)
    _fitting(_FILE, file, archive, file)
    return Picture(str(archive), offset, size, class_name, file)


def _parts(archive: Path, name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\\" in name or not parts:
        raise XciteError(f"{archive}: refused, the member name {name!r} points elsewhere")
    return parts


def _fitting(pattern: re.Pattern[str], text: str, archive: Path, name: str) -> str:
    if not pattern.fullmatch(text):
        raise XciteError(f"{archive}: refused, {name!r} is not a plain name")
    return text


# --- checking -----------------------------------------------------------------------------------


def _check(splits: dict[str, list[Picture]], answers: Answers | None) -> dict[str, int]:
    for split, pictures in splits.items():
        if not pictures:
            raise XciteError(f"no {split} pictures in the archives")
        places = Counter((picture.class_name, picture.file) for picture in pictures)
        (class_name, file), times = places.most_common(1)[0]
        if times > 1:
            raise XciteError(f"{split}: {class_name}/{file} occurs {times} times")
    classes = {picture.class_name for picture in splits["train"]}
    unknown = {picture.class_name for picture in splits["val"]} - classes
    if unknown:
        raise XciteError(
            f"val has pictures of {sorted(unknown)[0]} and {len(unknown) - 1} more classes "
            "that train does not have; is a part of train missing?"
        )
    if answers is not None:
        missing = answers.missing(picture.file for picture in splits["val"])
        if missing:
            raise XciteError(
                f"{len(missing)} of {len(answers.by_name)} val pictures are missing, "
                f"{sorted(missing)[0]} first"
            )
    counts = {"classes": len(classes)} | {name: len(part) for name, part in splits.items()}
    official = counts["classes"] == OFFICIAL["classes"] and counts["val"] == OFFICIAL["val"]
    if official and counts["train"] != OFFICIAL["train"]:
        raise XciteError(
            f"train has {counts['train']} pictures; ImageNet-1k has {OFFICIAL['train']}: "
            "the archive is incomplete or not the official one"
        )
    return counts


def _check_space(splits: dict[str, list[Picture]], aside: Path) -> None:
    wanted = sum(picture.size for pictures in splits.values() for picture in pictures)
    if aside.exists():
        wanted -= sum(path.stat().st_size for path in aside.rglob("*") if path.is_file())
    place = next(parent for parent in aside.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if wanted > free:
        raise XciteError(
            f"{place} has {free / 1e9:.1f} GB free and needs {wanted / 1e9:.1f} GB; make room"
        )


def _verify(aside: Path, split: str, pictures: list[Picture], layout: str) -> None:
    expected = Counter(picture.class_name for picture in pictures)
    if layout == "folders":
        found = Counter(
            {folder.name: len(os.listdir(folder)) for folder in (aside / split).iterdir()}
        )
    else:
        found = Counter(
            name.partition("/")[0]
            for shard in sorted(aside.glob(f"{split}-*.tar"))
            for name, _, _ in tar_members(shard)
        )
    if found != expected:
        wrong = next(name for name in found | expected if found[name] != expected[name])
        raise XciteError(
            f"{aside}: {split} has {found[wrong]} pictures of {wrong}, "
            f"{expected[wrong]} were expected; remove the folder and begin anew"
        )


# --- writing ------------------------------------------------------------------------------------


def _write_folders(
    aside: Path, split: str, pictures: list[Picture], per_shard: int, progress: Progress
) -> None:
    for class_name in {picture.class_name for picture in pictures}:
        (aside / split / class_name).mkdir(parents=True, exist_ok=True)
    for done, picture in enumerate(pictures):
        path = aside / split / picture.class_name / picture.file
        if not _has_size(path, picture.size):
            # outside the class folders, so that every file in those is whole
            half = aside / f".{split}.part"
            try:
                half.write_bytes(_read(picture))
                half.replace(path)
            except OSError as error:
                raise XciteError(f"cannot write {path}: {error.strerror}") from error
        progress(f"writing {split}", done + 1, len(pictures))
    (aside / f".{split}.part").unlink(missing_ok=True)


def _write_shards(
    aside: Path, split: str, pictures: list[Picture], per_shard: int, progress: Progress
) -> None:
    for start in range(0, len(pictures), per_shard):
        chosen = pictures[start : start + per_shard]
        path = aside / f"{split}-{start // per_shard:04}.tar"
        if not path.exists():
            with (
                whole_file(path) as half,
                tarfile.open(half, "w:", format=_FORMAT) as shard,
            ):
                for number, picture in enumerate(chosen):
                    member = tarfile.TarInfo(f"{picture.class_name}/{picture.file}")
                    member.size = picture.size
                    shard.addfile(member, io.BytesIO(_read(picture)))
                    progress(f"writing {split}", start + number + 1, len(pictures))
        progress(f"writing {split}", start + len(chosen), len(pictures))


def _read(picture: Picture) -> bytes:
    with open(picture.archive, "rb") as file:
        file.seek(picture.offset)
        data = file.read(picture.size)
    if len(data) != picture.size:
        raise XciteError(f"{picture.archive}: cut short within {picture.file}")
    return data


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _hash(splits: dict[str, list[Picture]]) -> str:
    digest = hashlib.sha256()
    for split, pictures in splits.items():
        lines: Iterable[str] = (
            f"{split}/{picture.class_name}/{picture.file} {picture.size}\n" for picture in pictures
        )
        for line in lines:
            digest.update(line.encode())
    return digest.hexdigest()


def _plan_of(folder: Path) -> Any:
    try:
        return json.loads((folder / _PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
