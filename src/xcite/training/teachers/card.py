"""What a teacher cache says of itself: the facts, and the card beside its files.

Both are read from the folder alone, so they hold for a copy anywhere: names in it, never paths.
"""

import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from xcite.control_characters import visible
from xcite.errors import XciteError
from xcite.regular_files import read_regular
from xcite.training.teachers.cache_files import FORMAT, read_header, read_manifest, views_in
from xcite.training.teachers.checksums import FILE, read_checksums, update_checksums
from xcite.training.teachers.facts import is_program
from xcite.weights import catalog
from xcite.weights.card import cell
from xcite.weights.opening import recognise_weights
from xcite.whole_files import write_text

CARD = "README.md"
_SHOWN = 20  # class names on the card; the manifest has all


class TeacherFacts(BaseModel):
    """Who answered, as its `Teacher.identity` said; None where that is not recorded."""

    name: str
    sha256: str
    engine: str | None = None
    size: int | tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class FileFacts(BaseModel):
    """A file of the cache; its SHA-256 as listed beside it, None where it is not listed."""

    name: str
    bytes: int
    sha256: str | None


class CacheFacts(BaseModel):
    """What `xcite inspect` prints of a cache.

    Attributes:
        licence: of the teacher's weights; None where nobody states one.
        depends: what the answers depend on, by the recipe's key where there is one.
        pictures: of the training set; None in caches that do not say.
        class_names: in the order of the answers' numbers; None in caches that do not say.
        views: numbers of the complete views.
        answers: in a view.
        bits: stored for an answer, beside a bit of presence for each picture and repetition.
        outside_mean: probability outside the kept classes, mean over all answers; so is
            ``outside_largest`` its largest, and ``divergence`` the mean KL divergence of the
            stored answers from the given ones, in nats. None for hard answers, or not measured.
    """

    folder: str
    teacher: TeacherFacts
    licence: str | None = None
    depends: dict[str, Any]
    pictures: int | None = None
    classes: int
    class_names: list[str] | None = None
    views: list[int]
    answers: int = 0
    columns: dict[str, str] = {}
    bits: int = 0
    outside_mean: float | None = None
    outside_largest: float | None = None
    divergence: float | None = None
    files: list[FileFacts]

    @property
    def loss(self) -> str:
        """Which answers these are: "hard", "soft", "dml" or "cosine"."""
        return str(self.depends.get("distill.loss"))

    @property
    def space(self) -> str:
        """What they are of: "classes", "teacher-classes" or "features"."""
        return str(self.depends.get("distill.space", "classes"))


def is_cache(folder: Path) -> bool:
    """Whether a folder looks like a teacher cache; other programs write manifests, too."""
    path = folder / "manifest.json"
    if not path.is_file():
        return False
    return bool(views_in(folder)) or b"xcite teacher cache" in read_regular(path, size=4096)


def facts(folder: Path) -> CacheFacts:
    """What a cache says of itself; its answers are not read.

    Raises:
        XciteError: no cache, or one whose manifest, views or list of checksums are damaged.
    """
    manifest, views, sums = read_manifest(folder), views_in(folder), read_checksums(folder)
    headers = [read_header(path, manifest["hash"], view) for view, path in views.items()]
    told: dict[str, Any] = {}
    if headers:
        shapes = {name: column for name, column in headers[0][0].items() if name != "replaced"}
        shapes.pop("present", None)
        told["answers"] = next((c.shape[0] for c in shapes.values() if c.shape), 0)
        told["columns"] = {n: f"{c.dtype} {list(c.shape)}" for n, c in headers[0][0].items()}
        told["bits"] = sum(_bits(c.dtype) * math.prod(c.shape[1:]) for c in shapes.values())
    try:
        measured = {
            name: [float(said[name]) for _, said in headers]
            for name in ("outside_mean", "outside_largest", "divergence")
            if headers and all(name in said for _, said in headers)
        }
        for name, values in measured.items():
            told[name] = max(values) if name == "outside_largest" else sum(values) / len(values)
        names = manifest.get("class_names")
        return CacheFacts(
            folder=visible(folder.resolve().name),
            teacher=manifest["teacher"] | {"name": visible(manifest["teacher"].get("name"))},
            licence=manifest.get("licence"),
            depends=manifest["depends"],
            pictures=manifest.get("pictures"),
            classes=manifest["classes"],
            class_names=None if names is None else [visible(name) for name in names],
            views=list(views),
            files=[
                FileFacts(name=path.name, bytes=path.stat().st_size, sha256=sums.get(path.name))
                for path in (folder / "manifest.json", *views.values())
            ],
            **told,
        )
    except (ValidationError, ValueError, TypeError, KeyError) as error:
        what = error.errors()[0]["loc"][0] if isinstance(error, ValidationError) else error
        raise XciteError(
            f"{folder} does not say what a teacher cache says ({what}); take another copy"
        ) from error


def _bits(dtype: str) -> int:
    return int("".join(filter(str.isdigit, dtype)) or 8)


def licence_of(teacher: str | None) -> str | None:
    """The licence that the catalogue of published weights, or a file's own metadata, states."""
    known = catalog.licence(teacher) if teacher else None
    if known or not teacher or is_program(teacher):
        return known
    told = recognise_weights(teacher).metadata.provenance
    stated = told.get("licence") or told.get("license")
    return str(stated) if stated else None


def write_card(folder: Path, changed: Path | None = None) -> None:
    """Write card and checksums of the views that are complete; for who owns the folder.

    Args:
        changed: a view that was just written.
    """
    update_checksums(folder, changed)
    write_text(folder / CARD, markdown(facts(folder)))


def rows(found: CacheFacts) -> list[tuple[str, str]]:
    """The facts as pairs of a title and its text, for card and terminal."""
    teacher = found.teacher
    answers = f"{found.answers:,} answers a view" if found.views else "no view is complete"
    pictures = "not recorded" if found.pictures is None else f"{found.pictures:,}"
    said = [
        ("Teacher", teacher.name),
        ("Teacher's SHA-256", teacher.sha256),
        ("Computed on", teacher.engine or "not recorded"),
        ("Teacher's input", f"{teacher.size}, mean {teacher.mean}, std {teacher.std}"),
        ("Teacher's licence", found.licence or "not stated"),
        ("Answers", f"{found.loss}, {found.classes:,} {found.space}"),
        ("Pictures", f"{pictures}, fingerprint {found.depends.get('data.train')}"),
        ("Seed", str(found.depends.get("run.seed"))),
        ("Views", f"{len(found.views)} ({answers})"),
        ("Bits per answer", f"{found.bits}, and 1 of presence for each picture and repetition"),
        ("Size", f"{sum(file.bytes for file in found.files):,} bytes"),
    ]
    if "rest" in found.columns:
        said += [
            ("Outside the kept classes", _lost(found.outside_mean, found.outside_largest)),
            ("KL of stored from given", _number(found.divergence, " nats, mean over all answers")),
        ]
    return said


def markdown(found: CacheFacts) -> str:
    """The card: what the answers are, what they depend on, how to read and to verify them."""
    lines = [f"# Answers of {cell(found.teacher.name)}", ""]
    lines += [
        f"The answers of a frozen teacher for every picture of {len(found.views)} epochs of "
        "training, each augmented, erased and mixed as the student sees it. Xcite trains students "
        f"from this folder (`distill.cache`); format: {FORMAT}.",
        "",
        *_table(rows(found)),
        *("", "## What the answers depend on", ""),
        "A run that differs in any of these is refused.",
        "",
        *_table([(name, str(value)) for name, value in found.depends.items()]),
    ]
    if found.class_names:
        more = len(found.class_names) - _SHOWN
        shown = ", ".join(cell(name) for name in found.class_names[:_SHOWN])
        more_said = f" and {more:,} more, in `manifest.json`" if more > 0 else ""
        lines += ["", "## Classes, by number from 0", "", shown + more_said]
    lines += ["", "## Files", "", "| file | bytes | SHA-256 |", "|---|---:|---|"]
    lines += [f"| {f.name} | {f.bytes:,} | {f.sha256 or 'not listed'} |" for f in found.files]
    if found.views:
        lines += ["", "## Read", "", *_reading(found)]
    lines += [
        *("", "## Verify", "", f"    sha256sum -c {FILE}"),
        "    xcite teach RECIPE --out FOLDER --verify 1000",
        "",
        "The first finds damage. The second also computes a thousand answers again, which takes "
        "the recipe, the pictures and the teacher.",
        "",
    ]
    return "\n".join(lines)


def _reading(found: CacheFacts) -> list[str]:
    kept = next(name for name in ("classes", "features", "top_classes") if name in found.columns)
    lines = [
        "```python",
        "import numpy as np",
        "from safetensors.numpy import load_file",
        "",
        f'view = load_file("{_view_name(found)}")',
        f'keys = np.flatnonzero(np.unpackbits(view["present"]))  # picture * '
        f"{found.depends.get('data.repeats')} + repetition",
        f'answers = view["{kept}"]  # the teacher\'s, one row a key',
        "```",
    ]
    if kept == "top_classes":
        lines += [
            "",
            'Their probabilities are `view["top_probabilities"]`, and `view["rest"]` is that of '
            "all other classes together.",
        ]
    return lines


def _view_name(found: CacheFacts) -> str:
    return next(file.name for file in found.files if file.name.startswith("view-"))


def _table(pairs: list[tuple[str, str]]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {cell(title)} | {cell(text)} |" for title, text in pairs)]


def _lost(mean: float | None, largest: float | None) -> str:
    return f"{_number(mean)} of the probability on average, at most {_number(largest)}"


def _number(value: float | None, unit: str = "") -> str:
    return "not measured" if value is None else f"{value:.3g}{unit}"
