"""Pictures out of a request's body, whichever way they are sent."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from xcite.server.base64_pictures import EXPECTED, from_base64, written_in_json
from xcite.server.forms import read_form
from xcite.server.request_bodies import UploadError, read_body

if TYPE_CHECKING:
    from starlette.requests import Request


@dataclass(frozen=True)
class Upload:
    """One file as it was sent.

    Attributes:
        name: the sender's word, only ever shown.
        data: encoded picture.
        error: why there is no ``data``, in words.
    """

    name: str
    data: bytes
    error: str | None = None


async def read_uploads(
    request: "Request",
    *,
    max_bytes: int,
    max_files: int,
    silence: float,
    count: Callable[[int], None],
) -> list[Upload]:
    """The pictures of a form or of JSON, or the body itself as one picture, in their order.

    Nothing is written to disk: at most ``max_bytes`` and what is made of them are held in memory.

    Args:
        silence: seconds the body may pause.
        count: told the bytes as they are known; may raise.

    Raises:
        UploadError: 408, 413 and 415 as `read_body`, 415 another type of body, 400 a malformed
            one, 422 no picture in it.
    """
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    body = read_body(request, max_bytes=max_bytes, silence=silence, count=count)
    if kind in ("", "application/octet-stream") or kind.startswith("image/"):
        data = b"".join([piece async for piece in body])
        if not data:
            raise UploadError(422, f"the body is empty; {EXPECTED}")
        return [Upload("picture", data)]
    found: list[tuple[str, Callable[[], bytes]]]
    if kind == "application/json" or kind.endswith("+json"):
        written = written_in_json(b"".join([piece async for piece in body]), max_files)
        found = [(name, partial(from_base64, text)) for name, text in written]
    elif kind.startswith("multipart/"):
        parts = await read_form(content_type, body, max_files)
        found = [(part.file_name or "", part.picture) for part in parts]
    else:
        raise UploadError(415, f"the body is neither a picture nor a form nor JSON; {EXPECTED}")
    if len(found) > max_files:
        raise UploadError(413, f"more than {max_files} files in one request; send fewer")
    if not found:
        raise UploadError(422, f"the form holds no file; {EXPECTED}")
    return [
        _upload(name or (f"picture {k}" if len(found) > 1 else "picture"), data)
        for k, (name, data) in enumerate(found, 1)
    ]


def _upload(name: str, data: Callable[[], bytes]) -> Upload:
    name = name[:200].encode("utf-8", "replace").decode()  # JSON may hold halves of characters
    try:
        return Upload(name, data())
    except ValueError as error:
        return Upload(name, b"", f"{name}: {error}")
