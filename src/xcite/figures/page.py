"""The parts of an HTML page that loads nothing and runs nothing: every text is escaped."""

import base64
import html
from collections.abc import Iterable, Sequence

from xcite.control_characters import visible
from xcite.language import language

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f27; --paper: #f5f6f8; --card: #fff; --line: #d5d9e0;
  --quiet: #59616f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e9ecf2; --paper: #12151b; --card: #1b2029;
  --line: #343c4a; --quiet: #a3acba; } }
body { margin: 0 auto; max-width: 70rem; padding: 2rem 1rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1, h2 { line-height: 1.2; } h1 { margin: 0; } h2 { margin-top: 0; font-size: 1.2rem; }
section { margin: 1rem 0; padding: 1.25rem; border: 1px solid var(--line); border-radius: .75rem;
  background: var(--card); }
.quiet { color: var(--quiet); }
.wide { display: block; max-width: 100%; background: #fff; border-radius: .5rem; }
table { border-collapse: collapse; }
th, td { padding: .2rem 1.25rem .2rem 0; text-align: left; vertical-align: top; }
th { white-space: nowrap; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
td { max-width: 40rem; overflow-wrap: anywhere; } h1, dd { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
.facts { display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; margin: 1rem 0; padding: 0; }
.facts div { min-width: 7rem; } .facts dt { color: var(--quiet); font-size: .875rem; }
.facts dd { margin: 0; font-size: 1.25rem; font-weight: 600; }
.pictures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); }
.pictures figure { margin: 0; }
.pictures .pair { display: grid; grid-template-columns: 1fr 1fr; gap: .25rem; }
.pictures img { width: 100%; border-radius: .35rem; image-rendering: pixelated; }
figcaption { font-size: .875rem; overflow-wrap: anywhere; }
pre { overflow-x: auto; margin: 0; font-size: .875rem; columns: 19rem; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """The whole page; ``parts`` are HTML."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f"<!doctype html>\n<html lang='{language()}'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escaped(title)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def escaped(stranger: str) -> str:
    """A stranger's text as HTML."""
    return html.escape(visible(stranger))


def name(stranger: str) -> str:
    """The same among other words, which right-to-left letters in it do not turn round."""
    return f"<bdi>{escaped(stranger)}</bdi>"


def section(title: str, body: str) -> str:
    """A part with a heading; ``body`` is HTML."""
    return f"<section><h2>{escaped(title)}</h2>{body}</section>\n"


def picture(data: bytes, words: str, kind: str = "") -> str:
    """A PNG inside the page, described in words."""
    encoded = base64.b64encode(data).decode()
    return f"<img class='{kind}' alt='{escaped(words)}' src='data:image/png;base64,{encoded}'>"


def table(rows: Iterable[Sequence[object]], head: Sequence[str] = ()) -> str:
    """A table of anything; numbers stand to the right."""

    def cell(value: object) -> str:
        kind = " class='number'" if isinstance(value, int | float) else ""
        text = f"{value:,.1f}" if isinstance(value, float) else str(value)
        return f"<td{kind}>{escaped(text)}</td>"

    heading = "".join(f"<th scope='col'>{escaped(text)}</th>" for text in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<div class='scroll'><table>{f'<tr>{heading}</tr>' if head else ''}{body}</table></div>"
