"""`xcite serve`: the process around the application, from the socket to the last answer."""

import importlib.util
import signal
import socket
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from xcite.errors import XciteError
from xcite.language import tr
from xcite.machine import allow_open_files, set_timer
from xcite.runtime.predictor import Predictor
from xcite.server.guard import Application, Guard
from xcite.server.limits import Limits

if TYPE_CHECKING:
    from xcite.server.routes import Routes


def create_app(
    predictor: Predictor,
    limits: Limits | None = None,
    *,
    token: str | None = None,
    hosts: Collection[str] = (),
) -> Application:
    """The ASGI application: `Routes` behind a `Guard`.

    Raises:
        XciteError: the extra 'serve' is not installed, or the token is empty.
    """
    return _guarded(_routes(predictor, limits or Limits()), token, hosts)


def _routes(predictor: Predictor, limits: Limits) -> "Routes":
    try:
        from xcite.server.routes import Routes
    except ModuleNotFoundError as error:
        raise XciteError(
            f"serving needs {error.name}, which is not installed: pip install 'xcite[serve]'"
        ) from error
    return Routes(predictor, limits)


def _guarded(routes: "Routes", token: str | None, hosts: Collection[str]) -> Application:
    if token is not None and not token.strip():
        raise XciteError("the token is empty; give one, or none at all")
    return Guard(routes.app, token=token, hosts=hosts, observe=routes.metrics.request)


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
    bundle: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    hosts: Collection[str] = (),
    limits: Limits | None = None,
    mode: str = "latency",
) -> None:
    """Serve a bundle until SIGTERM or SIGINT; accepted requests are answered before it returns.

    That takes `STOP_SECONDS` at most, after which the process is ended; a request that cannot be
    answered in time gets 503.

    Raises:
        XciteError: unreadable bundle, taken port, missing extra.
    """
    try:
        import uvicorn

        from xcite.server.connections import ANSWER_SECONDS, LimitedServer, stop_in_time
        from xcite.server.decoders import DecodingStoppedError
    except ModuleNotFoundError as error:
        raise XciteError("serving needs uvicorn: pip install 'xcite[serve]'") from error

    limits = limits or Limits()
    routes = _routes(Predictor(bundle, mode=mode), limits)
    app = _guarded(routes, token, hosts)
    allow_open_files(limits.connections + 200)
    listener = listen(host, port)
    try:
        routes.service.warm_up()
    except (XciteError, DecodingStoppedError) as error:
        routes.service.close()
        listener.close()
        raise XciteError(f"{bundle} cannot be served: {error}") from error
    shown = f"[{host}]" if ":" in host else host
    config = uvicorn.Config(
        app,
        # both tell what a connection is doing; other protocols of uvicorn need not
        http="httptools" if importlib.util.find_spec("httptools") else "h11",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=int(limits.silence),
        timeout_graceful_shutdown=ANSWER_SECONDS + 1,
    )
    server = LimitedServer(config, limits, routes.stop)

    # Before uvicorn listens to signals, and after its graceful stop, when it raises them once more.
    def stop(*_: object) -> None:
        stop_in_time()
        server.should_exit = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    url = f"http://{shown}:{listener.getsockname()[1]}"
    print(tr("serving {bundle} at {url}", bundle=bundle, url=url), flush=True)
    if token is None and host not in ("127.0.0.1", "::1", "localhost"):
        print(
            tr(
                "xcite: anyone who reaches this address can use it; set XCITE_TOKEN or --token-file"
            ),
            file=sys.stderr,
        )
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        listener.close()
        if not routes.service.batcher.alive:  # else a batch still runs, and only the alarm ends it
            set_timer("ITIMER_REAL", 0)
