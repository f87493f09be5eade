"""Pictures out of a request's body, its size checked while it arrives."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request


class UploadError(Exception):
    """A body that is refused: HTTP status and what is wrong, in words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Upload:
    """One file as it was sent; ``name`` is the sender's word and only ever shown."""

    name: str
    data: bytes


async def _limited(
    request: "Request", max_bytes: int, silence: float, count: Callable[[int], None]
) -> AsyncIterator[bytes]:
    received = 0
    chunks = aiter(request.stream())
    while True:
        try:
            chunk = await asyncio.wait_for(anext(chunks), silence)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise UploadError(408, f"the body paused for {silence:g} s") from error
        received += len(chunk)
        if received > max_bytes:
            raise UploadError(413, _too_large(max_bytes))
        count(len(chunk))
        yield chunk


def _too_large(max_bytes: int) -> str:
    return f"the request is larger than {max_bytes / 2**20:.4g} MiB, the most this server takes"


async def read_uploads(
    request: "Request",
    *,
    max_bytes: int,
    max_files: int,
    silence: float,
    count: Callable[[int], None],
) -> list[Upload]:
    """The files of a multipart form, or the body itself as one picture.

    Nothing is written to disk: at most ``max_bytes`` are held in memory.

    Args:
        silence: seconds the body may pause.
        count: told the bytes as they arrive; may raise.

    Raises:
        UploadError: 408 a pause, 413 too large (before any of it is read where that is declared),
            415 another type of body, 400 a malformed form, 422 no file.
    """
    from starlette.formparsers import MultiPartException, MultiPartParser

    class InMemory(MultiPartParser):
        spool_max_size = sys.maxsize  # bounded by max_bytes instead

    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise UploadError(413, _too_large(max_bytes))
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = _limited(request, max_bytes, silence, count)
    if kind.startswith("image/") or kind == "application/octet-stream":
        data = b"".join([chunk async for chunk in body])
        if not data:
            raise UploadError(422, "the body is empty; send a picture")
        return [Upload("picture", data)]
    if kind != "multipart/form-data":
        raise UploadError(
            415,
            "send pictures as files of a multipart/form-data form, "
            "or one picture as the body with an image/* content type",
        )
    try:
        # one file more than allowed, so that the message is ours
        form = await InMemory(
            request.headers,
            body,  # type: ignore[arg-type]
            max_files=max_files + 1,
            max_fields=max_files + 1,
        ).parse()
    except (MultiPartException, UnicodeError, ValueError) as error:
        raise UploadError(400, "the multipart form is malformed") from error
    files = [value for _, value in form.multi_items() if not isinstance(value, str)]
    if len(files) > max_files:
        raise UploadError(413, f"more than {max_files} files in one request; send fewer")
    if not files:
        raise UploadError(422, "the form holds no file; add pictures as files")
    return [Upload((file.filename or "picture")[:200], await file.read()) for file in files]
