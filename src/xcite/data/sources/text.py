"""Text files as people write them: in UTF-8 with or without a mark, UTF-16 or GBK."""

import codecs
from collections.abc import Callable
from pathlib import Path

from xcite.errors import XciteError
from xcite.regular_files import open_regular

_LONGEST_LINE = 1 << 16  # bytes
_LARGEST = 1 << 29  # bytes; a million lines have about a tenth
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_OTHERS = {
    b"\x1f\x8b": "a compressed one (gzip); unpack it",
    b"PK\x03\x04": "a workbook or a zip archive; save the table as CSV",
    b"\xd0\xcf\x11\xe0": "a workbook; save the table as CSV",
    b"%PDF": "a PDF",
    b"PAR1": "a parquet table; its name must end in .parquet",
}


def read_text(
    path: Path, is_right: Callable[[str], bool] = lambda text: False
) -> tuple[str, list[str]]:
    r"""The text of a file, lines ended by "\n" alone, and notes for people on its encoding.

    Args:
        is_right: asked about the first line that is no UTF-8, its bytes escaped as in file names:
            whether that is what the line means. If not, the file is read as GBK.

    Raises:
        XciteError: unreadable, in no encoding that is known, or a line beyond all measure.
    """
    try:
        with open_regular(path) as file:
            data = file.read(_LONGEST_LINE)
            if len(data) == _LONGEST_LINE and not set(b"\r\n") & set(data):
                raise XciteError(f"{path}: a line of more than {_LONGEST_LINE} bytes")
            data += file.read(_LARGEST - len(data))
            if file.read(1):
                raise XciteError(f"{path}: more than {_LARGEST >> 20} MiB, too large for a list")
    except OSError as error:
        raise XciteError(f"{path}: not a readable text file ({error.strerror})") from error
    text, notes = _decoded(data, path, is_right)
    text = text.replace("\r\n", "\n") if "\n" in text else text.replace("\r", "\n")
    if max(map(len, text.split("\n"))) > _LONGEST_LINE:
        raise XciteError(f"{path}: a line of more than {_LONGEST_LINE} bytes")
    return text, notes


def _no_text(data: bytes) -> str:
    kind = next((kind for start, kind in _OTHERS.items() if data.startswith(start)), None)
    return f"not a text file but {kind}" if kind else "not a text file; it holds zero bytes"


def _decoded(data: bytes, path: Path, is_right: Callable[[str], bool]) -> tuple[str, list[str]]:
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if encoding is None and not data.startswith(tuple(_OTHERS)):
        start = data[:4096]
        zeros = [start[side::2].count(0) > len(start) // 8 for side in (0, 1)]
        if any(zeros) and not all(zeros):
            encoding = "utf-16-be" if zeros[0] else "utf-16-le"
    try:
        text = data.decode(encoding or "utf-8").removeprefix("\ufeff")
        if "\0" in text:
            raise XciteError(f"{path}: {_no_text(data)}")
        return text, []
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        if encoding is not None and encoding != "utf-8":
            raise XciteError(f"{path}: not a readable text file, damaged {encoding}") from error
    if b"\0" in data:
        raise XciteError(f"{path}: {_no_text(data)}")
    escaped = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    if is_right(escaped.split("\n")[line - 1]):
        return escaped, []
    try:
        note = f"{path}: line {line} is not UTF-8; read as GBK. If names look wrong, save it as"
        return data.decode("gb18030"), [f"{note} UTF-8"]
    except UnicodeDecodeError as error:
        raise XciteError(
            f"{path} line {line}: neither UTF-8 nor GBK; save the file as UTF-8"
        ) from error
