"""Who may ask, from where, and under which address; checked before a server starts."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from xcite.control_characters import visible
from xcite.errors import XciteError

# Every address of the server, below its root path.
PATHS = frozenset(
    {"/", "/page.css", "/page.js", "/languages/zh.json", "/docs", "/openapi.json"}
    | {"/predict", "/health", "/info", "/metrics"}
)

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{1,5})?")
_ROOT = re.compile(r"(/[A-Za-z0-9._~-]+)+")


@dataclass(frozen=True)
class Access:
    """Who may ask, from where, and under which address.

    Attributes:
        token: when given, requests must carry ``Authorization: Bearer TOKEN``.
        hosts: when given, the only names (Host) under which the server answers.
        origins: of pages elsewhere that may read its answers, as ``https://shop.example:8443``;
            ``*`` for all.
        root_path: where a proxy has put the server, as ``/models/xcite``; whether the proxy takes
            it off or leaves it on makes no difference.

    Raises:
        XciteError: an empty token, an origin that is none, or a root path that cannot be one.
    """

    token: str | None = None
    hosts: Collection[str] = ()
    origins: Collection[str] = ()
    root_path: str = ""

    def __post_init__(self) -> None:
        if self.token is not None and not self.token.strip():
            raise XciteError("the token is empty; give one, or none at all")
        origins = tuple(origin.lower().removesuffix("/") for origin in self.origins)
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise XciteError(
                    f"{visible(origin)!r} is not an origin; write scheme and host, "
                    "as https://shop.example or http://localhost:3000, or * for all"
                )
        object.__setattr__(self, "origins", origins)
        root = self.root_path.strip("/")
        root = f"/{root}" if root else ""
        if root and (not _ROOT.fullmatch(root) or {".", ".."} & set(root.split("/"))):
            raise XciteError(
                f"the root path {visible(self.root_path)!r} cannot be one; "
                "write it as in the proxy's address, as /models/xcite"
            )
        if root in PATHS:
            raise XciteError(f"the root path {root} is an address of the server; choose another")
        object.__setattr__(self, "root_path", root)
