"""Tables that say what ImageNet's flat validation pictures show."""

import io
import re
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xcite.data.decoding import SUFFIXES
from xcite.data.sources.text import read_text
from xcite.errors import XciteError

WNID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")

_KAGGLE = "LOC_val_solution.csv"
_NAMES = (_KAGGLE, "ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12.tar")
_LEVELS = 5  # from ILSVRC/Data/CLS-LOC/val up to where Kaggle puts its table
_LARGEST_TABLE = 64 << 20  # bytes; the real meta.mat has about half a million
_LARGEST_DEVKIT = 1 << 30  # bytes unpacked; the real one has a few million


@dataclass(frozen=True)
class Answers:
    """Class names by the name of a picture without its ending; ``origin`` is the table."""

    by_name: dict[str, str]
    origin: str

    def wnid(self, file: str) -> str:
        """What a picture shows.

        Raises:
            XciteError: the table does not say.
        """
        found = self.by_name.get(_stem(file))
        if found is None:
            raise XciteError(f"{self.origin}: nothing says what {file} shows")
        return found

    def missing(self, files: Iterable[str]) -> set[str]:
        """Names in the table that are not among ``files``."""
        return set(self.by_name) - {_stem(file) for file in files}

    @property
    def note(self) -> str:
        return f"what the pictures show is read from {self.origin}"


def answers_beside(folder: Path) -> Answers | None:
    """The table in a folder or one above it, under the name that it is published with."""
    for place in [folder, *folder.absolute().parents][:_LEVELS]:
        for name in _NAMES:
            if (place / name).is_file():
                return read_answers(place / name) if name == _KAGGLE else read_devkit(place / name)
    return None


def missing_answers() -> str:
    """What to do where `answers_beside` finds nothing."""
    return f"for ImageNet's flat validation pictures, one of {', '.join(_NAMES[:2])} beside them"


def read_answers(path: Path) -> Answers:
    """Answers of lines "name wnid", or of Kaggle's CSV of ImageId and PredictionString.

    Raises:
        XciteError: unreadable, a line of another form, or a picture that is listed twice.
    """
    answers: dict[str, str] = {}
    for number, line in enumerate(read_text(path)[0].split("\n"), 1):
        fields = line.replace(",", " ").split()
        if not fields or fields == ["ImageId", "PredictionString"]:
            continue
        boxes = fields[2:]  # Kaggle's, five to an object; all are of one class
        if len(fields) < 2 or not WNID.fullmatch(fields[1]) or len(boxes) % 5 not in (0, 4):
            raise XciteError(f"{path} line {number}: expected 'name wnid', got {line[:80]!r}")
        file = _stem(fields[0])
        if file in answers:
            raise XciteError(f"{path} line {number}: {file} is listed twice")
        answers[file] = fields[1]
    return Answers(answers, str(path))


def _stem(file: str) -> str:
    file = file.rpartition("/")[2]
    stem, _, suffix = file.rpartition(".")
    return stem if f".{suffix}".lower() in SUFFIXES else file


def read_devkit(path: Path) -> Answers:
    """Answers of the development kit: line k is about ILSVRC2012_val_0000000k.JPEG.

    Raises:
        XciteError: not the kit, damaged, or SciPy, which reads its table, is missing.
    """
    wanted = {"meta.mat": b"", "ILSVRC2012_validation_ground_truth.txt": b""}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                if member.offset > _LARGEST_DEVKIT:
                    raise XciteError(f"{path}: far too large for a development kit")
                name = member.name.rpartition("/")[2]
                if member.isreg() and name in wanted and not wanted[name]:
                    if member.size > _LARGEST_TABLE:
                        raise XciteError(f"{path}: {member.name} is far too large")
                    file = archive.extractfile(member)
                    assert file is not None  # regular members have contents
                    wanted[name] = file.read()
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise XciteError(f"{path}: cannot be read as a development kit ({error})") from error
    for name, data in wanted.items():
        if not data:
            raise XciteError(f"{path}: no {name} in it; is it ILSVRC2012_devkit_t12?")
    wnids = _wnids(wanted["meta.mat"], path)
    answers: dict[str, str] = {}
    truth = wanted["ILSVRC2012_validation_ground_truth.txt"].decode("ascii", "replace").split()
    for number, text in enumerate(truth, 1):
        if not text.isdecimal() or int(text) not in wnids:
            raise XciteError(f"{path}: answer {number} of the ground truth is {text[:20]!r}")
        answers[f"ILSVRC2012_val_{number:08}"] = wnids[int(text)]
    return Answers(answers, str(path))


def _wnids(table: bytes, path: Path) -> dict[int, str]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise XciteError(
            "reading the development kit's meta.mat needs SciPy: pip install scipy; "
            "or give --val-list with lines of 'name wnid'"
        ) from error
    try:
        synsets = loadmat(io.BytesIO(table), squeeze_me=True)["synsets"].reshape(-1)
        rows: list[Any] = [row for row in synsets if _number(row, "num_children") == 0]
        return {_number(row, "ILSVRC2012_ID"): str(row["WNID"]) for row in rows}
    except Exception as error:  # SciPy raises nearly anything on damaged files
        raise XciteError(f"{path}: cannot read the synsets in meta.mat ({error})") from error


def _number(row: Any, field: str) -> int:
    return int(row[field]) if field in row.dtype.names else 0
