"""What stands before every request: its number, host, origin, token and address, and counting."""

import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from xcite.server.access import Access
from xcite.server.cross_origin import CrossOrigin, Headers

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
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")  # of a proxy; others get one of ours

_log = logging.getLogger("xcite.server")


@dataclass(frozen=True)
class Handled:
    """One request that was answered.

    Attributes:
        path: below the root path, as the sender wrote it.
        seconds: from the request's head to the end of its answer.
        request_id: the proxy's ``X-Request-Id``, or one of ours; the answer carries it, too.
        client: address of who is connected.
    """

    method: str
    path: str
    status: int
    seconds: float
    request_id: str
    client: str


class Guard:
    """ASGI application around another one.

    All but `OPEN_PATHS` need the token, if there is one. /health is answered under any host, for
    probes that know only an address; a page of elsewhere whose name was made to point here (DNS
    rebinding) is kept out. HEAD is answered as GET without a body.

    Args:
        observe: told of every request, answered or not.
    """

    def __init__(
        self, application: Application, access: Access, observe: Callable[[Handled], None]
    ) -> None:
        self._application = application
        self._token = access.token.encode() if access.token else None
        self._hosts = frozenset(name.lower().strip("[]") for name in access.hosts)
        self._cross_origin = CrossOrigin(access.origins)
        self._root = access.root_path
        self._observe = observe
        self._headers = [(name.encode(), text.encode()) for name, text in SECURITY_HEADERS.items()]

    def _called_right(self, scope: Scope, path: str) -> bool:
        if not self._hosts or path == "/health":
            return True
        name = _header(scope, b"host").decode("latin-1").lower()
        if not name.endswith("]"):  # an IPv6 address without a port
            name = name.rpartition(":")[0] or name
        return name.strip("[]") in self._hosts

    def _allowed(self, scope: Scope, path: str) -> bool:
        if self._token is None or path in OPEN_PATHS:
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
        path = scope["path"]
        if path.startswith(f"{self._root}/"):  # a proxy left it on
            path = path[len(self._root) :]
        number = _request_id(scope)
        preflight = self._cross_origin.is_preflight(scope)
        more = [
            *self._headers,
            (b"x-request-id", number.encode()),
            *self._cross_origin.headers(scope, preflight=preflight),
        ]

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *more]
            elif scope["method"] == "HEAD":
                message["body"] = b""
            await send(message)

        try:
            if sum(len(name) + len(value) for name, value in scope["headers"]) > LARGEST_HEADERS:
                await _refuse(send_guarded, 431, "the headers of this request are too large")
            elif not self._called_right(scope, path):
                await _refuse(send_guarded, 421, "this server does not answer under this name")
            elif preflight:
                await _answer_preflight(send_guarded, more)
            elif path and path == self._root:  # links of the page start behind a slash
                location = path.rpartition("/")[2] + "/"
                words = f"the page is at {location}"
                await _refuse(send_guarded, 308, words, (b"location", location.encode()))
            elif not self._allowed(scope, path):
                words = "this server needs a token: Authorization: Bearer TOKEN"
                await _refuse(send_guarded, 401, words, (b"www-authenticate", b"Bearer"))
            else:
                method = "GET" if scope["method"] == "HEAD" else scope["method"]
                known = {"path": self._root + path, "root_path": self._root}
                asked = {**scope, **known, "method": method, "request_id": number}
                await self._application(asked, receive, send_guarded)
        except Exception:
            _log.error("request %s failed", number)  # what failed, the server around logs next
            raise
        finally:
            client = (scope.get("client") or ("-",))[0]
            seconds = time.perf_counter() - started
            self._observe(Handled(scope["method"], path, status, seconds, number, client))


def _header(scope: Scope, wanted: bytes) -> bytes:
    found: bytes = next((value for name, value in scope["headers"] if name == wanted), b"")
    return found


def _request_id(scope: Scope) -> str:
    given = _header(scope, b"x-request-id")
    return given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


async def _refuse(send: Send, status: int, words: str, *more: tuple[bytes, bytes]) -> None:
    body = json.dumps({"error": words}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _answer_preflight(send: Send, headers: Headers) -> None:
    if not any(name == b"access-control-allow-origin" for name, _ in headers):
        await _refuse(send, 403, "pages of this origin may not ask; see --allow-origin")
        return
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})
