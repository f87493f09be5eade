"""In which language Xcite speaks to people: English, or one that has a catalog in `languages/`.

Messages are written in English where they arise. `tr` looks its template up in the catalog and
fills in the values. Errors stay English as exceptions, because programs and files read them, too:
`translated` recognises them by their pattern when they are shown.
"""

import functools
import json
import os
import re
import sys
import unicodedata
from importlib import resources
from typing import Any

LANGUAGES = ("en", "zh")

# A stranger's name inside an error must not make the search for patterns long.
_LONGEST = 2000
_MOST_PARTS = 12

_chosen: str | None = None


def choose(language: str | None) -> None:
    """Speak this language from now on; None takes the environment's."""
    global _chosen
    _chosen = language


def language() -> str:
    """The language in use: the one chosen, XCITE_LANG, or the locale's."""
    return _chosen or _of_environment()


def _of_environment() -> str:
    wish = os.environ.get("XCITE_LANG", "").lower()[:2]
    if wish in LANGUAGES:
        return wish
    names = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    locale = next(filter(None, names), None) or _of_windows()
    return "zh" if locale.lower().startswith(("zh", "chinese")) and _shows("中") else "en"


def _of_windows() -> str:
    """Windows sets no LANG, but Python has asked it at the start."""
    import locale

    return (locale.getlocale(locale.LC_CTYPE)[0] or "") if os.name == "nt" else ""


def _shows(character: str) -> bool:
    """Whether the terminal can show a character; a wish that was said aloud is not questioned."""
    try:
        character.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True


def tr(template: str, **values: Any) -> str:
    """``template`` in the language in use, its ``{name}`` filled in as `str.format` does.

    Values are never taken for templates. What the catalog does not know stays English.
    """
    return catalog(language())["messages"].get(template, template).format(**values)


def translated(error: str) -> str:
    """An English error in the language in use, as far as the catalog knows its parts.

    Parts end at "; "; as many of them together as a pattern knows are translated at once.
    """
    parts = error.split("; ")
    if language() == "en" or len(error) > _LONGEST or len(parts) > _MOST_PARTS:
        return error
    said = []
    while parts:
        for count in range(len(parts), 0, -1):
            found = _replaced("; ".join(parts[:count]))
            if found is not None or count == 1:
                said.append(parts[0] if found is None else found)
                del parts[:count]
                break
    return "；".join(said)


def noted(note: str) -> str:
    """The line for an English note, which is known by its pattern like an error."""
    return tr("note: {note}", note=translated(note))


def _replaced(error: str) -> str | None:
    for pattern, translation in _patterns(language()):
        if match := pattern.fullmatch(error):
            return translation.format(*(translated(group) for group in match.groups()))
    return None


@functools.cache
def _patterns(language: str) -> list[tuple[re.Pattern[str], str]]:
    """The errors of the catalog; those with the most words of their own come first."""
    errors = catalog(language)["errors"]
    ordered = sorted(errors, key=lambda text: -len(text.replace("{}", "")))
    # A value ends before "; ", where the next part begins.
    patterns = (re.escape(text).replace(r"\{\}", "((?:(?!; ).)*?)") for text in ordered)
    return [
        (re.compile(pattern, re.DOTALL), errors[text])
        for pattern, text in zip(patterns, ordered, strict=True)
    ]


@functools.cache
def catalog(language: str) -> dict[str, dict[str, str]]:
    """Translations: ``messages`` by English template, ``errors`` by pattern with ``{}`` in it."""
    if language == "en":
        return {"messages": {}, "errors": {}}
    file = resources.files("xcite").joinpath(f"languages/{language}.json")
    read: dict[str, dict[str, str]] = json.loads(file.read_text("utf-8"))
    return read


def letters() -> set[str]:
    """Every character that the language in use may write beyond ASCII."""
    texts = catalog(language())["messages"].values()
    return {letter for text in texts for letter in text if not letter.isascii()}


def width(text: str) -> int:
    """Columns of a terminal that a text takes; Chinese characters take two."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def padded(text: str, columns: int) -> str:
    """``text`` with spaces up to so many columns of a terminal."""
    return text + " " * (columns - width(text))


def shortened(text: str, columns: int) -> str:
    """``text`` in so many columns at most, with an ellipsis for its middle: ends tell apart."""
    if width(text) <= columns:
        return text
    tail = (columns - 1) // 3
    head = _beginning(text, columns - 1 - tail)
    return head + "…" + _beginning(text[::-1], tail)[::-1]


def _beginning(text: str, columns: int) -> str:
    taken = 0
    for number, character in enumerate(text):
        taken += width(character)
        if taken > columns:
            return text[:number]
    return text
