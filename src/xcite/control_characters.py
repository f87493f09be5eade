"""Which characters of a stranger's text would act on a terminal, log or page instead of being read.

File names, class names, metadata and recipe paths come from strangers. They are kept as they are
and shown escaped: everything that is printed or written for people passes through here.
"""

import re

# C0 and DEL, C1 (where ESC [ has a one-character form), separators of lines, what reverses the
# direction of reading, the byte-order mark, and bytes of file names that are no UTF-8.
_ACTING = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")


def visible(text: object) -> str:
    """``text`` as one line on which every acting character is shown as Python would write it.

    Backslashes stay as they are. What is escaped beyond ASCII is escaped as in JSON, too.
    """
    return _ACTING.sub(_escape, str(text))


def visible_lines(text: str) -> str:
    """The same for text whose line ends are its author's: they stay."""
    return "\n".join(visible(line) for line in text.split("\n"))


def writable_json(text: str) -> str:
    """JSON text that can be written as UTF-8: bytes of names that are no text become escapes."""
    return _SURROGATE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return repr(found[0])[1:-1] if code < 0x20 else f"\\u{code:04x}"
