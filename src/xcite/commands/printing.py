"""How commands print: strangers' text escaped, JSON whole on every terminal."""

import json
import sys
from typing import Any

import typer

from xcite.control_characters import visible


def say(*lines: str, err: bool = False) -> None:
    """Print each text on a line of its own, whatever it holds."""
    for line in lines:
        typer.echo(visible(line), err=err)


def say_json(value: Any, indent: int = 2) -> None:
    """Print JSON; what lies beyond ASCII stays readable where the terminal can show it."""
    say(*json_text(value, indent).split("\n"))  # what `visible` escapes beyond ASCII is JSON's own


def json_text(value: Any, indent: int) -> str:
    """JSON that standard output can show."""
    encoding = (sys.stdout.encoding or "ascii").lower().replace("-", "")
    return json.dumps(value, indent=indent, ensure_ascii=encoding != "utf8")


def cell(text: object) -> str:
    """A cell of a rich table, in which neither control characters nor markup act."""
    from rich.markup import escape

    return escape(visible(text))
