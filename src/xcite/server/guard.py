"""What stands before every request: the token, security headers, counting."""

import hmac
import json
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# The page needs its own files and pictures made in the browser (blob:), nothing from elsewhere.
SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}

# Without a token: the page, which asks for one, and the sign of life.
OPEN_PATHS = frozenset({"/", "/page.css", "/page.js", "/languages/zh.json", "/health"})

LARGEST_HEADERS = 16 * 2**10  # bytes, all together; browsers send one or two thousand


class Guard:
    """ASGI application around another one.

    Args:
        token: when given, all but `OPEN_PATHS` need ``Authorization: Bearer TOKEN``.
        hosts: when given, names under which the server answers; /health is answered under any, for
            probes that know only an address. A page of elsewhere whose name was made to point here
            (DNS rebinding) is kept out.
        observe: told method, path, status and seconds of every request.
    """

    def __init__(
        self,
        application: Application,
        *,
        token: str | None,
        hosts: Collection[str] = (),
        observe: Callable[[str, str, int, float], None],
    ) -> None:
        self._application = application
        self._token = token.encode() if token else None
        self._hosts = frozenset(name.lower().strip("[]") for name in hosts)
        self._observe = observe
        self._headers = [(name.encode(), text.encode()) for name, text in SECURITY_HEADERS.items()]

    def _called_right(self, scope: Scope) -> bool:
        if not self._hosts or scope["path"] == "/health":
            return True
        name = _header(scope, b"host").decode("latin-1").lower()
        if not name.endswith("]"):  # an IPv6 address without a port
            name = name.rpartition(":")[0] or name
        return name.strip("[]") in self._hosts

    def _allowed(self, scope: Scope) -> bool:
        if self._token is None or scope["path"] in OPEN_PATHS:
            return True
        given = _header(scope, b"authorization")
        scheme, _, token = given.partition(b" ")
        # constant time: how long a wrong token takes must not tell how much of it is right
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *self._headers]
            await send(message)

        try:
            if sum(len(name) + len(value) for name, value in scope["headers"]) > LARGEST_HEADERS:
                await _refuse(send_guarded, 431, "the headers of this request are too large")
            elif not self._called_right(scope):
                await _refuse(send_guarded, 421, "this server does not answer under this name")
            elif not self._allowed(scope):
                words = "this server needs a token: Authorization: Bearer TOKEN"
                await _refuse(send_guarded, 401, words, (b"www-authenticate", b"Bearer"))
            else:
                await self._application(scope, receive, send_guarded)
        finally:
            seconds = time.perf_counter() - started
            self._observe(scope["method"], scope["path"], status, seconds)


def _header(scope: Scope, wanted: bytes) -> bytes:
    found: bytes = next((value for name, value in scope["headers"] if name == wanted), b"")
    return found


async def _refuse(send: Send, status: int, words: str, *more: tuple[bytes, bytes]) -> None:
    body = json.dumps({"error": words}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
