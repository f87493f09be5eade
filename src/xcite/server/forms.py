"""Multipart forms, as browsers, command lines and mail libraries write them, held in memory."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.utils import collapse_rfc2231_value, decode_params, unquote

from xcite.server.base64_pictures import EXPECTED, from_base64, refuse_parameters
from xcite.server.request_bodies import UploadError

_PARAMETER = re.compile(r";\s*([\w!#$%&'*+.^`|~-]+)\s*=\s*(\"(?:\\.|[^\"\\])*\"|[^\s;]*)")
_OTHER_FIELDS = 32  # besides the pictures


@dataclass
class Part:
    """One part of a form.

    Attributes:
        name: of the field.
        file_name: as the sender calls the file; None where it is no file.
        kind: its media type, lower case, without parameters; "" where none is given.
        boundary: of a part that is a form itself.
        coding: its Content-Transfer-Encoding, lower case.
    """

    name: str = ""
    file_name: str | None = None
    kind: str = ""
    boundary: str = ""
    coding: str = ""
    data: bytearray = field(default_factory=bytearray)

    @property
    def is_picture(self) -> bool:
        """A file, or something without a file name that can only be meant as one."""
        if self.file_name is not None:
            # how a browser sends a file field in which nothing was chosen
            return bool(self.file_name or self.data)
        if self.kind.startswith("image/") or self.kind == "application/octet-stream":
            return True
        if self.coding == "base64":  # mail libraries write fields so, too
            try:
                return not _is_text(self.picture())
            except ValueError:
                return False
        return self.data[:5].lower() == b"data:" or not _is_text(self.data)

    def picture(self) -> bytes:
        """The bytes of the picture.

        Raises:
            ValueError: they cannot be had, in words.
        """
        if self.coding == "base64" or self.data[:5].lower() == b"data:":
            return from_base64(self.data.decode("latin-1"))
        if self.coding not in ("", "binary", "8bit", "7bit"):
            raise ValueError("its Content-Transfer-Encoding is not understood; send it as binary")
        return bytes(self.data)


async def read_form(content_type: str, body: AsyncIterator[bytes], max_files: int) -> list[Part]:
    """The pictures of a form, in their order, also those of forms inside (multipart/mixed).

    Raises:
        UploadError: 400 malformed, 413 too many parts, 422 a parameter of the address.
    """
    _, parameters = header_value(content_type)
    form = _Form(parameters.get("boundary", ""), 2 * max_files + _OTHER_FIELDS)
    async for piece in body:
        form.write(piece)
    parts = []
    for part in form.end():
        if part.boundary and part.kind.startswith("multipart/"):
            inner = _Form(part.boundary, form.parts_left)
            inner.write(bytes(part.data))
            parts += inner.end()
            form.parts_left = inner.parts_left
        else:
            parts.append(part)
    refuse_parameters(part.name for part in parts if not part.is_picture)
    return [part for part in parts if part.is_picture]


class _Form:
    """Parts out of bytes that arrive one after the other."""

    def __init__(self, boundary: str, most_parts: int) -> None:
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import MultipartParser

        self.parts_left = most_parts
        self._most = most_parts
        self._error = FormParserError
        self._parts: list[Part] = []
        self._field = b""
        self._value = b""
        self._ended = False
        if not boundary:
            raise _malformed("its Content-Type names no boundary")
        try:
            self._parser = MultipartParser(
                boundary.encode("latin-1"),
                {
                    "on_part_begin": self._begin,
                    "on_part_data": self._data,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_end": self._end,
                },
            )
        except (FormParserError, UnicodeError) as error:
            raise _malformed("its boundary cannot be one") from error

    def write(self, piece: bytes) -> None:
        try:
            self._parser.write(piece)
        except (self._error, ValueError) as error:
            raise _malformed("a part or its head is not as it must be") from error

    def end(self) -> list[Part]:
        if not self._ended:  # the last picture may be half of one
            raise _malformed("it ends too early")
        return self._parts

    def _end(self) -> None:
        self._ended = True

    def _begin(self) -> None:
        if not self.parts_left:
            raise UploadError(413, f"more than {self._most} parts in one form; send fewer")
        self.parts_left -= 1
        self._parts.append(Part())

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._parts[-1].data += memoryview(data)[start:end]

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        name, self._field = self._field.lower(), b""
        raw, self._value = self._value, b""
        try:
            text = raw.decode("utf-8")  # as browsers send names
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
        value, parameters = header_value(text)
        part = self._parts[-1]
        if name == b"content-disposition":
            part.name = parameters.get("name", "")
            part.file_name = parameters.get("filename", part.file_name)
        elif name == b"content-type":
            part.kind, part.boundary = value, parameters.get("boundary", "")
        elif name == b"content-transfer-encoding":
            part.coding = value


def header_value(text: str) -> tuple[str, dict[str, str]]:
    """A header's value in lower case and its parameters by name.

    ``filename*=UTF-8''na%C3%AFve.png`` and parameters in pieces (``filename*0=``) are understood
    (RFC 2231, RFC 5987) and go before the plain ones.
    """
    pairs = [(name.lower(), value) for name, value in _PARAMETER.findall(text)]
    found: dict[str, str] = {}
    for name, value in decode_params([("", ""), *pairs])[1:]:
        if isinstance(value, tuple):
            found[name] = unquote(collapse_rfc2231_value(value))
        elif name not in found:
            found[name] = unquote(value)
    return text.partition(";")[0].strip().lower(), found


def _is_text(data: bytes | bytearray) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return b"\0" not in data


def _malformed(why: str) -> UploadError:
    return UploadError(400, f"the multipart form is malformed: {why}; {EXPECTED}")
