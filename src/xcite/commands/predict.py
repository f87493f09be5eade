"""`xcite predict`: what is on pictures."""

import contextlib
import sys
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import typer

from xcite.commands.own_pictures import own_pictures
from xcite.commands.printing import json_text, say
from xcite.control_characters import visible
from xcite.errors import XciteError
from xcite.language import noted, tr, translated

if TYPE_CHECKING:
    from xcite.data.given_pictures import Given
    from xcite.runtime.opening import OpenedModel

app = typer.Typer(add_completion=False)

TOGETHER = 32  # pictures per batch: bounds the memory

Answer = dict[str, Any]  # "picture", and "classes" (the most probable first) or "error"


@app.command()
def predict(
    model: str = typer.Argument(help="Run folder, weights file, published name or bundle."),
    pictures: list[str] = typer.Argument(
        None,
        help="Picture files, folders, quoted patterns, archives, 'digits', or - for standard "
        "input; default: a run's validation pictures.",
    ),
    top: int = typer.Option(5, min=1, help="How many classes to name."),
    engine: str = typer.Option(None, help="paddle or torch; default: paddle where installed."),
    device: str = typer.Option("auto", help="What to compute on: auto, cpu, gpu, cuda:1, ..."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    columns: str = typer.Option(
        None, help="Of a given CSV or parquet: columns of path and label, as image,label."
    ),
    csv: str = typer.Option(None, "--csv", help="Write a table to this file; - prints it."),
) -> None:
    """Name what is on pictures; unreadable ones get a line each, and exit code 2 at the end."""
    from xcite.data.given_pictures import given_pictures, of_source
    from xcite.data.sources import Found
    from xcite.runtime.opening import open_model

    if as_json and csv:
        raise XciteError("--json and --csv are two forms of one answer; choose one")
    own = None
    if not pictures:
        ask = f"say what {model} shall look at: files, folders or patterns"
        own, _ = own_pictures(model, ask)
    opened = open_model(model, engine, device)
    for note in opened.notes:
        say(noted(note), err=True)
    if not opened.class_names:
        count = opened.architecture.num_classes
        say(noted(f"{model} does not name its {count} classes: the answers are numbers"), err=True)
    found = Found()
    channels = opened.preprocessing.channels
    given = (
        of_source(own)
        if own
        else given_pictures(pictures, found, channels=channels, columns=columns)
    )
    top = min(top, opened.architecture.num_classes)
    done = failed = 0
    with (
        contextlib.suppress(BrokenPipeError),  # a reader such as `head` that has gone is no error
        _form(as_json=as_json, csv=csv, top=top) as form,
    ):
        for answer in _answers(opened, given, top):
            done += 1
            if "error" in answer:
                failed += 1
                if not as_json and csv != "-":
                    say(f"xcite: {translated(answer['error'])}", err=True)
            form.write(answer)
    if csv and csv != "-":
        told = {"count": done, "unreadable": failed, "file": csv}
        say(tr("{count} pictures, {unreadable} of them unreadable: {file}", **told))
    for kind, count in found.left_out.items():
        told = {"count": count, "kind": translated(kind), "example": found.examples[kind]}
        say(tr("note: left out: {count} {kind} ({example})", **told), err=True)
    if failed:
        raise typer.Exit(2)


def _answers(opened: "OpenedModel", given: "Iterator[Given]", top: int) -> Iterator[Answer]:
    """An answer for each picture, in order; at most `TOGETHER` pictures are held."""
    import numpy as np

    from xcite.runtime.inputs import prepared
    from xcite.runtime.ranking import probabilities, ranked

    seen = prepared(given, opened.pixels, channels=opened.preprocessing.channels)
    while together := list(islice(seen, TOGETHER)):
        pixels = [one.pixels for one in together if one.pixels is not None]
        rows = iter(probabilities(opened.logits(np.stack(pixels))) if pixels else ())
        for one in together:
            if one.pixels is None:
                yield {"picture": one.name, "error": one.error}
                continue
            answers = ranked(next(rows), opened.class_names, top)
            yield {
                "picture": one.name,
                "classes": [{"name": name, "probability": share} for name, share in answers],
            }


class _Form(Protocol):
    """How answers are written, one by one."""

    def write(self, answer: Answer) -> None: ...


@contextlib.contextmanager
def _form(*, as_json: bool, csv: str | None, top: int) -> Iterator[_Form]:
    if as_json:
        rows = _Json()
        yield rows
        rows.end()
    elif csv == "-":
        yield _Csv(sys.stdout, top)
    elif csv:
        from xcite.whole_files import whole_file

        with (
            whole_file(csv) as aside,
            aside.open("w", encoding="utf-8", newline="") as stream,
        ):
            yield _Csv(stream, top)
    else:
        yield _Lines()


class _Lines:
    """Text for people."""

    def write(self, answer: Answer) -> None:
        if "error" not in answer:
            say(answer["picture"])
            for row in answer["classes"]:
                say(f"  {100 * row['probability']:6.2f} %  {row['name']}")


class _Json:
    """One JSON list, written item by item."""

    def __init__(self) -> None:
        self._begun = False

    def write(self, answer: Answer) -> None:
        typer.echo("," if self._begun else "[")
        lines = [f" {visible(line)}" for line in json_text(answer, indent=1).split("\n")]
        typer.echo("\n".join(lines), nl=False)
        self._begun = True

    def end(self) -> None:
        typer.echo("\n]" if self._begun else "[]")


class _Csv:
    """A table: picture, then class and probability ``top`` times, then what went wrong."""

    def __init__(self, stream: Any, top: int) -> None:
        import csv

        self._top = top
        self._rows = csv.writer(stream, lineterminator="\n")
        numbers = ["", *(f"_{place}" for place in range(2, top + 1))]
        named = [f"{column}{number}" for number in numbers for column in ("class", "probability")]
        self._rows.writerow(["picture", *named, "error"])

    def write(self, answer: Answer) -> None:
        cells = [
            text
            for row in answer.get("classes", [])
            for text in (visible(row["name"]), f"{row['probability']:.6f}")
        ]
        cells += [""] * (2 * self._top - len(cells))
        self._rows.writerow([visible(answer["picture"]), *cells, visible(answer.get("error", ""))])
