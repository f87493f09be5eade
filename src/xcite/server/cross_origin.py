"""CORS: which pages of other origins may read the answers.

Credentials of the browser (cookies) are never allowed: the server knows only the token, which a
page sends by itself.
"""

from collections.abc import Collection, MutableMapping
from typing import Any

Headers = list[tuple[bytes, bytes]]

_PREFLIGHT = [
    (b"access-control-allow-methods", b"GET, HEAD, POST"),
    (
        b"access-control-allow-headers",
        b"authorization, content-encoding, content-type, x-request-id",
    ),
    (b"access-control-max-age", b"600"),
]
_EXPOSED = (b"access-control-expose-headers", b"retry-after, x-request-id")


class CrossOrigin:
    """What is said to pages of ``origins``; without any, nothing is."""

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)

    def is_preflight(self, scope: MutableMapping[str, Any]) -> bool:
        """Whether a browser asks if a page of elsewhere may ask."""
        names = {name for name, _ in scope["headers"]}
        asks = {b"origin", b"access-control-request-method"} <= names
        return bool(self._origins) and scope["method"] == "OPTIONS" and asks

    def headers(self, scope: MutableMapping[str, Any], *, preflight: bool = False) -> Headers:
        """What an answer to this request carries, for caches a sign that it depends on Origin."""
        if not self._origins:
            return []
        origin = next((value for name, value in scope["headers"] if name == b"origin"), b"")
        every = b"*" in self._origins
        varies = [] if every else [(b"vary", b"Origin")]
        if not origin or not (every or origin.lower() in self._origins):
            return varies
        allowed = (b"access-control-allow-origin", b"*" if every else origin)
        return [allowed, *varies, *(_PREFLIGHT if preflight else [_EXPOSED])]
