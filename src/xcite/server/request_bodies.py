"""The body of a request as it arrives: its size, its pauses and its compression."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request

BLOCK = 2**16  # bytes that are decompressed at a time


class UploadError(Exception):
    """A body that is refused: HTTP status and what is wrong, in words."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = {name.replace("_", "-"): text for name, text in headers.items()}


async def read_body(
    request: "Request", *, max_bytes: int, silence: float, count: Callable[[int], None]
) -> AsyncIterator[bytes]:
    """The body in pieces, decompressed where it is gzip or deflate.

    Args:
        max_bytes: of the body, as sent and decompressed.
        silence: seconds the body may pause.
        count: told the bytes as they are known; may raise.

    Raises:
        UploadError: 408 a pause, 413 too large (before any of it is read where that is declared),
            415 another compression, 400 damaged compression.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    coding = request.headers.get("content-encoding", "").strip().lower()
    pieces = _arriving(request, max_bytes, silence)
    if coding in ("gzip", "x-gzip", "deflate"):
        pieces = _decompressed(pieces, coding)
    elif coding not in ("", "identity"):
        raise UploadError(
            415,
            "the body is compressed in a way this server does not know; send it as it is, or gzip",
            Accept_Encoding="gzip, deflate",
        )
    known = 0
    async for piece in pieces:
        known += len(piece)
        if known > max_bytes:
            raise _too_large(max_bytes)
        count(len(piece))
        yield piece


async def _arriving(request: "Request", max_bytes: int, silence: float) -> AsyncIterator[bytes]:
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
            raise _too_large(max_bytes)
        yield chunk


async def _decompressed(pieces: AsyncIterator[bytes], coding: str) -> AsyncIterator[bytes]:
    """At most `BLOCK` bytes at a time, so that a bomb costs no more than its reader takes."""
    inflater = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # the head tells gzip from zlib
    try:
        async for piece in pieces:
            if inflater.eof and piece:
                raise UploadError(400, f"the {coding} body goes on behind its end")
            block = bytes(BLOCK)
            while piece or len(block) == BLOCK:  # a full block may have left some inside
                block = inflater.decompress(piece, BLOCK)
                piece = inflater.unconsumed_tail
                yield block
                await asyncio.sleep(0)  # others are answered meanwhile
    except zlib.error as error:
        raise UploadError(400, f"the {coding} body is damaged") from error
    if not inflater.eof:
        raise UploadError(400, f"the {coding} body ends too early")
    if inflater.unused_data:
        raise UploadError(400, f"the {coding} body goes on behind its end")


def _too_large(max_bytes: int) -> UploadError:
    most = f"{max_bytes / 2**20:.4g} MiB, the most this server takes"
    return UploadError(413, f"the request is larger than {most}")
