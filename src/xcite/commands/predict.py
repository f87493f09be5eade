"""`xcite predict`: what is on pictures."""

from pathlib import Path
from typing import Any

import typer

from xcite.commands.printing import say, say_json
from xcite.language import tr, translated

app = typer.Typer(add_completion=False)

TOGETHER = 32  # pictures per batch: bounds the memory


@app.command()
def predict(
    model: str = typer.Argument(help="Run folder, weights file, published name or bundle."),
    pictures: list[Path] = typer.Argument(help="Picture files."),
    top: int = typer.Option(5, min=1, help="How many classes to name."),
    engine: str = typer.Option(None, help="paddle or torch; default: paddle where installed."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Name what is on pictures; unreadable ones get a line each, and exit code 2 at the end."""
    import numpy as np

    from xcite.data.decoding import decode
    from xcite.errors import XciteError
    from xcite.runtime.opening import open_model
    from xcite.runtime.ranking import probabilities, ranked

    opened = open_model(model, engine)
    for note in opened.notes:
        say(tr("note: {note}", note=note), err=True)
    answers: list[dict[str, Any]] = []
    failed = False
    for start in range(0, len(pictures), TOGETHER):
        group, pixels = [], []
        for picture in pictures[start : start + TOGETHER]:
            answer: dict[str, Any] = {"picture": str(picture)}
            answers.append(answer)
            try:
                decoded = decode(picture, channels=opened.preprocessing.channels)
                pixels.append(opened.pixels(decoded))
            except XciteError as error:
                answer["error"] = str(error)
                failed = True
                continue
            group.append(answer)
        if pixels:
            rows = probabilities(opened.logits(np.stack(pixels)))
            for answer, row in zip(group, rows, strict=True):
                answer["classes"] = [
                    {"name": name, "probability": share}
                    for name, share in ranked(row, opened.class_names, top)
                ]
        if not as_json:
            for answer in answers[start:]:
                _print(answer)
    if as_json:
        say_json(answers, indent=1)
    if failed:
        raise typer.Exit(2)


def _print(answer: dict[str, Any]) -> None:
    if "error" in answer:
        say(f"xcite: {translated(answer['error'])}", err=True)
        return
    say(answer["picture"])
    for row in answer["classes"]:
        say(f"  {100 * row['probability']:6.2f} %  {row['name']}")
