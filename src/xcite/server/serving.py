"""One serving process: a loaded bundle, its application and its event loop."""

import asyncio
import contextlib
import importlib.util
import json
import signal
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from xcite.control_characters import visible
from xcite.errors import XciteError
from xcite.machine import allow_open_files, set_timer
from xcite.runtime.bundle import require_classes
from xcite.runtime.predictor import Predictor
from xcite.server.access import Access
from xcite.server.guard import Application, Guard, Handled
from xcite.server.limits import Limits
from xcite.server.signs import INTERVAL, Signs

if TYPE_CHECKING:
    from xcite.server.routes import Routes


@dataclass(frozen=True)
class Settings:
    """What a process serves, and how.

    Attributes:
        bundle: folder.
        threads: compute threads of the Predictor; None for all cores.
        mode: of the Predictor.
        access_log: write a line about every request to standard error.
    """

    bundle: str
    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)
    mode: str = "latency"
    threads: int | None = None
    access_log: bool = False

    def text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of_text(cls, text: str | bytes | bytearray) -> "Settings":
        told = json.loads(text)
        parts = {"access": Access(**told["access"]), "limits": Limits(**told["limits"])}
        return cls(**told | parts)


@dataclass(frozen=True)
class Membership:
    """A process as one of several workers.

    Attributes:
        folder: in which the workers count together.
        worker: its number, from 0.
        signs: of life, of all of them.
    """

    folder: str
    worker: int
    signs: Signs


def open_routes(
    predictor: Predictor, limits: Limits, membership: Membership | None = None
) -> "Routes":
    """The addresses of a server.

    Raises:
        XciteError: the extra 'serve' is not installed, or a bundle of embeddings.
    """
    require_classes(predictor.info, predictor.bundle)
    try:
        from xcite.server import metrics
        from xcite.server.routes import Routes
    except ModuleNotFoundError as error:
        raise XciteError(
            f"serving needs {error.name}, which is not installed: pip install 'xcite[serve]'"
        ) from error
    if membership is None:
        return Routes(predictor, limits, metrics.Metrics())
    metrics.count_together(membership.folder, membership.worker)
    counted = metrics.Metrics(folder=membership.folder)
    return Routes(predictor, limits, counted, others=membership.signs.trouble)


def guarded(routes: "Routes", access: Access, *, access_log: bool = False) -> Application:
    """The ASGI application: `Routes` behind a `Guard`."""

    def observe(handled: Handled) -> None:
        routes.metrics.request(handled.method, handled.path, handled.status, handled.seconds)
        if access_log:
            print(log_line(handled), file=sys.stderr, flush=True)

    return Guard(routes.app, access, observe)


def log_line(handled: Handled) -> str:
    """One line about a request; what strangers wrote is shown escaped and cut."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    method, path = visible(handled.method)[:20], visible(handled.path)[:200]
    return (
        f"{now} {handled.client} {method} {path} {handled.status} "
        f"{1000 * handled.seconds:.1f}ms id={handled.request_id}"
    )


class Serving:
    """A bundle that is loaded and ready; `run` serves it.

    Raises:
        XciteError: unreadable bundle, missing extra, or it cannot predict.
    """

    def __init__(self, settings: Settings, membership: Membership | None = None) -> None:
        try:
            import uvicorn

            from xcite.server.connections import ANSWER_SECONDS, LimitedServer
        except ModuleNotFoundError as error:
            raise XciteError("serving needs uvicorn: pip install 'xcite[serve]'") from error
        limits = settings.limits
        predictor = Predictor(settings.bundle, mode=settings.mode, threads=settings.threads)
        self._membership = membership
        self.routes = open_routes(predictor, limits, membership)
        config = uvicorn.Config(
            guarded(self.routes, settings.access, access_log=settings.access_log),
            # both tell what a connection is doing; other protocols of uvicorn need not
            http="httptools" if importlib.util.find_spec("httptools") else "h11",
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=int(limits.silence),
            timeout_graceful_shutdown=ANSWER_SECONDS + 1,
        )
        if membership is not None:
            config.backlog = 1  # accept one at a time: the others get theirs, see `worker`
        self._server = LimitedServer(config, limits, self.routes.stop)
        allow_open_files(limits.connections + 200)

    def warm_up(self) -> None:
        """Make ready for the first request; after a failure nothing is left running.

        Raises:
            XciteError: it cannot predict or decode.
        """
        from xcite.server.decoders import DecodingStoppedError

        try:
            self.routes.service.warm_up()
        except (XciteError, DecodingStoppedError) as error:
            self.routes.service.close()
            bundle = self.routes.predictor.bundle
            raise XciteError(f"{bundle} cannot be served: {error}") from error

    def memory(self) -> int:
        """Bytes of this process and its decoders; what they share is counted once."""
        pids = ["self", *(str(pid) for pid in self.routes.service.decoders.pids())]
        return sum(_own_memory(Path("/proc") / pid) for pid in pids)

    def run(self, listener: socket.socket) -> None:
        """Answer until SIGTERM or SIGINT, and then what was accepted, see `stop_in_time`."""
        from xcite.server.connections import stop_in_time

        # Before uvicorn listens to signals, and after its graceful stop, when it raises them again.
        def stop(*_: object) -> None:
            stop_in_time()
            self._server.should_exit = True

        numbers = (signal.SIGTERM, signal.SIGINT)
        previous = {number: signal.signal(number, stop) for number in numbers}
        try:
            with asyncio.Runner(loop_factory=self._server.config.get_loop_factory()) as runner:
                runner.run(self._serve(listener))
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            listener.close()
            # else a batch still runs, and only the alarm ends it
            if not self.routes.service.batcher.alive:
                set_timer("ITIMER_REAL", 0)

    async def _serve(self, listener: socket.socket) -> None:
        proving = asyncio.create_task(self._prove())
        try:
            await self._server.serve(sockets=[listener])
        finally:
            proving.cancel()

    async def _prove(self) -> None:
        """Give signs of life, as one of several workers."""
        while self._membership is not None:
            if await self.routes.service.trouble() is None:
                self._membership.signs.give(self._membership.worker)
            await asyncio.sleep(INTERVAL)


def _own_memory(process: Path) -> int:
    """Bytes that a process has in memory, a page that n processes share as 1/n."""
    for name, label in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        with contextlib.suppress(OSError, IndexError, ValueError):
            text = (process / name).read_text("ascii", errors="replace")
            return 1024 * int(text.partition(label)[2].split()[0])
    return 0
