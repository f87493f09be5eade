"""`xcite serve`: from the socket to the last answer, in one process or several."""

import contextlib
import socket
import sys
from collections.abc import Collection
from pathlib import Path

from xcite.errors import XciteError
from xcite.language import noted, tr
from xcite.processor import this_processor
from xcite.runtime.bundle import bundle_folder, read_info, require_classes
from xcite.runtime.precision import as_run
from xcite.runtime.predictor import Predictor
from xcite.server.access import Access
from xcite.server.guard import Application
from xcite.server.limits import Limits
from xcite.server.serving import Serving, Settings, guarded, open_routes


def create_app(
    predictor: Predictor,
    limits: Limits | None = None,
    *,
    token: str | None = None,
    hosts: Collection[str] = (),
    origins: Collection[str] = (),
    root_path: str = "",
) -> Application:
    """The ASGI application: `Routes` behind a `Guard`; the arguments are those of `Access`.

    Raises:
        XciteError: the extra 'serve' is not installed, or something that `Access` refuses.
    """
    access = Access(token=token, hosts=hosts, origins=origins, root_path=root_path)
    return guarded(open_routes(predictor, limits or Limits()), access)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one.

    Raises:
        XciteError: unknown host, or the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
    except OSError as error:
        raise XciteError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; "
            "choose another with --host and --port"
        ) from error
    return listener


def serve(
    settings: Settings, *, host: str = "127.0.0.1", port: int = 8000, workers: int = 1
) -> None:
    """Serve a bundle until SIGTERM or SIGINT; accepted requests are answered before it returns.

    That takes `STOP_SECONDS` at most, after which the processes are ended; a request that cannot be
    answered in time gets 503.

    Args:
        workers: processes that answer; each loads the bundle.

    Raises:
        XciteError: unreadable bundle, taken port, missing extra, or workers that do not start.
    """
    if workers == 1:
        serving = Serving(settings)
        with contextlib.closing(listen(host, port)) as listener:
            serving.warm_up()
            _announce(settings, host, listener, serving.routes.predictor.notes)
            serving.run(listener)
        return
    folder = bundle_folder(settings.bundle) or Path(settings.bundle)
    info = read_info(folder)  # what is wrong with it is said before anything is started
    require_classes(info, folder)
    try:
        from xcite.server.workers import Workers
    except ModuleNotFoundError as error:
        raise XciteError("serving needs uvicorn: pip install 'xcite[serve]'") from error

    def announce(memory: list[int]) -> None:
        _, _, notes = as_run(info.precision, this_processor())
        _announce(settings, host, listener, notes)
        each, together = max(memory) / 2**20, sum(memory) / 2**20
        print(
            tr(
                "{count} workers, {each:.0f} MiB each, {together:.0f} MiB together",
                count=workers,
                each=each,
                together=together,
            ),
            flush=True,
        )

    with contextlib.closing(listen(host, port)) as listener:
        Workers(settings, listener, workers).run(announce)


def _announce(
    settings: Settings, host: str, listener: socket.socket, notes: Collection[str]
) -> None:
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listener.getsockname()[1]}{settings.access.root_path}"
    print(tr("serving {bundle} at {url}", bundle=settings.bundle, url=url), flush=True)
    for note in notes:
        print(noted(note), flush=True)
    if settings.access.token is None and host not in ("127.0.0.1", "::1", "localhost"):
        print(
            tr(
                "xcite: anyone who reaches this address can use it; set XCITE_TOKEN or --token-file"
            ),
            file=sys.stderr,
        )
