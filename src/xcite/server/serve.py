"""`xcite serve`: the process around the application, from the socket to the last answer."""

import signal
import socket
import sys
from pathlib import Path

from xcite.errors import XciteError
from xcite.runtime.predictor import Predictor
from xcite.server.guard import Application, Guard
from xcite.server.limits import Limits


def create_app(
    predictor: Predictor, limits: Limits | None = None, *, token: str | None = None
) -> Application:
    """The ASGI application: `Routes` behind a `Guard`.

    Raises:
        XciteError: the extra 'serve' is not installed.
    """
    try:
        from xcite.server.routes import Routes
    except ModuleNotFoundError as error:
        raise XciteError(
            f"serving needs {error.name}, which is not installed: pip install 'xcite[serve]'"
        ) from error
    routes = Routes(predictor, limits or Limits())
    return Guard(routes.app, token=token, observe=routes.metrics.request)


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
    limits: Limits | None = None,
    mode: str = "latency",
) -> None:
    """Serve a bundle until SIGTERM or SIGINT; accepted requests are answered before it returns.

    Raises:
        XciteError: unreadable bundle, taken port, missing extra.
    """
    try:
        import uvicorn
    except ModuleNotFoundError as error:
        raise XciteError("serving needs uvicorn: pip install 'xcite[serve]'") from error

    limits = limits or Limits()
    app = create_app(Predictor(bundle, mode=mode), limits, token=token)
    listener = listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            # twice the queue, so that a full queue is told (429) and not just a shut door
            limit_concurrency=2 * limits.queue + 64,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=int(limits.timeout) + 5,
        )
    )

    # Before uvicorn listens to signals, and after its graceful stop, when it raises them once more.
    def stop(*_: object) -> None:
        server.should_exit = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    print(f"serving {bundle} at http://{shown}:{listener.getsockname()[1]}", flush=True)
    if token is None and host not in ("127.0.0.1", "::1", "localhost"):
        print(
            "xcite: anyone who reaches this address can use it; set --token to ask for one",
            file=sys.stderr,
        )
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        listener.close()
