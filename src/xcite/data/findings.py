"""What was found in a source of pictures, in words."""

import unicodedata
from collections.abc import Sequence

import numpy as np

from xcite.data.formats import dimensions
from xcite.data.loose_pictures import UNLABELLED
from xcite.data.sources import Found, ListFile, Source, evenly
from xcite.data.sources.layouts import PARTS
from xcite.errors import XciteError
from xcite.language import tr, translated

SAMPLE = 16  # pictures whose size is looked at


def describe(source: Source) -> list[str]:
    """Lines for people: pictures and classes, what was left out, what looks wrong."""
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    smallest, largest = int(counts.argmin()), int(counts.argmax())
    line = tr(
        "{pictures:,} pictures of {classes:,} classes",
        pictures=len(source),
        classes=len(source.class_names),
    )
    if source.class_names == UNLABELLED:
        line = tr("{pictures:,} pictures, whose classes are not looked at", pictures=len(source))
    if len(counts) > 1 and counts[smallest] != counts[largest]:
        line += tr(
            ", from {fewest:,} ({rarest}) to {most:,} ({commonest}) each",
            fewest=counts[smallest],
            rarest=source.class_names[smallest],
            most=counts[largest],
            commonest=source.class_names[largest],
        )
    elif len(counts) > 1:
        line += tr(", {count:,} each", count=counts[largest])
    lines = [line + _sizes(source)]
    if source.found.left_out:
        lines.append(tr("left out: {kinds}", kinds=_left_out(source.found)))
    warnings = [*map(translated, source.found.warnings), *_suspicions(source.class_names)]
    return lines + [tr("warning: {warning}", warning=warning) for warning in warnings]


def refuse_doubtful(
    train: Source, validation: Source | None, *, on_error: str, classes_given: bool
) -> None:
    """Refuse what would be found too late, or would be learnt or measured wrongly without a word.

    Args:
        on_error: "skip" leaves out listed files that are missing.
        classes_given: a file says which class each number means.

    Raises:
        XciteError: listed files are missing; or validation labels are numbers, and the classes of
            the training pictures are the names of their folders.
    """
    for source in (train, validation):
        if isinstance(source, ListFile) and source.missing and on_error == "stop":
            missing = next(w for w in source.found.warnings if "are missing" in w)
            raise XciteError(f"{missing}; correct the list, or set data.on_error=skip")
    told = classes_given or isinstance(train, ListFile)
    if isinstance(validation, ListFile) and validation.guessed and not told:
        names = ", ".join(train.class_names[:3])
        raise XciteError(
            "the validation list has numbers as labels, the training pictures lie in folders "
            f"named {names}, ...: which is which? Write names as labels, or their order "
            "into a file and set data.classes to it"
        )


def _left_out(found: Found) -> str:
    """`Found.left_out_in_words`, in the language in use."""
    return tr(", ").join(
        tr(
            "{count:,} {kind} ({example})",
            count=count,
            kind=translated(kind),
            example=found.examples[kind],
        )
        for kind, count in found.left_out.items()
    )


def _suspicions(names: Sequence[str]) -> list[str]:
    """What is probably not meant, going by the names of the classes alone."""
    said = []
    parts = {part: [n for n in names if n.casefold() in words] for part, words in PARTS.items()}
    if all(parts.values()):
        first, second = (of_part[0] for of_part in parts.values())
        called = tr("{first} and {second}", first=first, second=second)
        said.append(tr("classes are called {names}: are these parts of a data set?", names=called))
    if twins := _look_alike(names):
        first, second = twins[0]
        said.append(
            tr(
                "the classes {first!r} and {second!r} are told apart only by {what}: are they one?",
                first=first,
                second=second,
                what=tr("case, spaces, Unicode form or leading zeros"),
            )
        )
    return said


def _look_alike(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that people, or another file system, would take for one."""
    seen: dict[str, str] = {}
    return [
        (seen[plain], name)
        for name in names
        if seen.setdefault(plain := _plain(name), name) != name
    ]


def _plain(name: str) -> str:
    plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    return plain.lstrip("0") if plain.isdecimal() else plain


def _sizes(source: Source) -> str:
    """Smallest and largest side of some pictures, by their headers alone."""
    sides: list[int] = []
    for index in evenly(len(source), SAMPLE):
        try:
            picture = source.read(index)
            if isinstance(picture, bytes):
                sides += dimensions(picture)[:2]
            else:
                sides += picture.shape[:2]
        except Exception:  # a damaged picture shows itself later, by name
            continue
    if not sides:
        return ""
    extent = f"{min(sides)}"
    if min(sides) != max(sides):
        extent = tr("{least} to {most}", least=min(sides), most=max(sides))
    return tr(", sides of {extent} pixels in those looked at", extent=extent)
