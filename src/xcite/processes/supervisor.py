"""Starts the processes of a run on this machine, watches them, and says once how they ended.

The framework's own launcher (`engines/*/launcher.py`) starts them, in a process of its own whose
output nobody sees. Each of them calls here (`xcite.processes.line`), so that the first has the
terminal, signals reach all of them, and each can say how it ended. ::

  xcite train --processes 2     this module
    engines/torch/launcher.py   the framework's launcher
      commands/launched.py      process 0 of 2
      commands/launched.py      process 1 of 2
"""

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from xcite.errors import XciteError
from xcite.language import language, tr
from xcite.machine import known_signals
from xcite.processes import environment
from xcite.processes.line import GRACE, SOCKET, VARIABLE, End, Hello, last_words
from xcite.processes.order import Order, interface, read_ends

SIGNALS = known_signals("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
# After the first failure the others are heard so long before they are stopped.
HEARING = 3.0
# A framework's launcher without living processes may take so long to end by itself.
FAREWELL = 20.0
_BETWEEN_LOOKS = 0.1


@dataclass
class _Caller:
    """A process that has called.

    Attributes:
        end: what it said last; None while it trains, or if it died.
    """

    hello: Hello
    end: End | None = None
    heard: float = 0.0  # when it said that
    received: bytes = b""
    open: bool = True


@dataclass
class _Round:
    """The processes between one start and the next."""

    callers: dict[socket.socket, _Caller] = field(default_factory=dict)

    def ranked(self) -> list[_Caller]:
        return sorted(self.callers.values(), key=lambda caller: caller.hello.rank)

    def living(self) -> list[_Caller]:
        return [caller for caller in self.callers.values() if caller.open]

    def failed(self) -> bool:
        return any(
            (c.end.code not in (0, 130)) if c.end else not c.open for c in self.callers.values()
        )


def supervise(
    engine: str, order: Order, *, options: str, restartable: bool, note: Callable[[str], None]
) -> int:
    """Run the processes to their end; the exit code of the run.

    Args:
        options: of `xcite train`, for messages of the processes.
        restartable: whether the framework's launcher itself starts again after a loss.
        note: tells people that the processes are started again.

    Raises:
        XciteError: what ended the run, once.
    """
    if not hasattr(socket, "send_fds"):
        raise XciteError(
            "--processes needs Linux or macOS; on Windows train in one process, or start each "
            "process yourself with the variables that torchrun sets"
        )
    again = 0 if restartable else order.restarts
    for left in range(again, -1, -1):
        launch = replace(order, restarts=order.restarts if restartable else 0)
        supervisor = _Supervisor(engine, launch, options, note)
        supervisor.restarts = again - left
        try:
            return supervisor.run()
        except XciteError:
            if not left or not supervisor.lost_one:
                raise
            note(_again())
    raise AssertionError


class _Supervisor:
    def __init__(
        self, engine: str, order: Order, options: str, note: Callable[[str], None]
    ) -> None:
        self.engine = engine
        self.order = order
        self.options = options
        self.note = note
        self.restarts = 0  # made before
        self.lost_one = False  # whether the run failed by the loss of a process alone
        self.round = _Round()
        self._signals: list[int] = []
        self._passed: list[int] = []
        self._failed_at: float | None = None
        self._ended_agent = False

    def run(self) -> int:
        folder = Path(tempfile.mkdtemp(prefix="xcite-launch-"))
        try:
            with self._noting_signals(), socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(folder / SOCKET))
                listener.listen(self.order.processes)
                self.order.write(folder)
                agent = self._start(folder)
                try:
                    self._watch(listener, agent)
                finally:
                    self._end(agent)
            return self._verdict(folder, agent.returncode)
        finally:
            for connection in self.round.callers:
                connection.close()
            shutil.rmtree(folder, ignore_errors=True)

    def _start(self, folder: Path) -> "subprocess.Popen[bytes]":
        variables = _without_launchers(os.environ)
        variables |= {
            VARIABLE: str(folder),
            environment.OPTIONS: self.options,
            environment.RESTARTS: str(self.restarts),
            "XCITE_LANG": language(),
        }
        if "GLOO_SOCKET_IFNAME" not in variables and (name := interface(self.order.address)):
            variables["GLOO_SOCKET_IFNAME"] = name
        with (folder / "launcher.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"xcite.engines.{self.engine}.launcher", str(folder)],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # signals of the terminal come here alone
            )

    def _watch(self, listener: socket.socket, agent: "subprocess.Popen[bytes]") -> None:
        """Until the framework's launcher has ended and every process is heard to its end."""
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            while agent.poll() is None or self._left_alone():
                for key, _ in selector.select(_BETWEEN_LOOKS):
                    if key.fileobj is listener:
                        self._answer(listener, selector)
                    else:
                        self._hear(key.fileobj, selector)  # type: ignore[arg-type]
                self._pass_signals(agent)
                self._release(agent)
            for connection in list(self.round.callers):  # what was said last
                with contextlib.suppress(OSError, KeyError):
                    connection.settimeout(0.5)
                    while self.round.callers[connection].open:
                        self._hear(connection, selector)

    def _left_alone(self) -> bool:
        """Whether processes live though their launcher is dead; they are asked to stop."""
        living = self.round.living()
        if living and self._failed_at is None:
            self._failed_at = time.monotonic()
        if living and not self._ended_agent:
            self._ended_agent = True
            _signal_all(living, signal.SIGTERM)
        if living and time.monotonic() - (self._failed_at or 0.0) > GRACE:
            _signal_all(living, signal.SIGKILL)
            return False
        return bool(living)

    def _answer(self, listener: socket.socket, selector: selectors.BaseSelector) -> None:
        """A process calls: who it is, and the terminal for the first of all."""
        connection, _ = listener.accept()
        connection.settimeout(5)
        try:
            with connection.makefile("rb") as reader:
                hello = Hello(**json.loads(reader.readline(4096)))
            handles = [1, 2] if hello.rank == 0 else []
            socket.send_fds(connection, [b"."], handles)
        except (OSError, ValueError, TypeError):
            connection.close()
            return
        connection.setblocking(False)
        for old in [c for c, caller in self.round.callers.items() if caller.open]:
            self._hear(old, selector)  # it may have ended before this one was started
        if self.round.callers and not self.round.living():  # started again by the launcher
            for old in self.round.callers:
                old.close()
            self.round, self._failed_at = _Round(), None
            self.note(_again())
        self.round.callers[connection] = caller = _Caller(hello)
        selector.register(connection, selectors.EVENT_READ)
        for number in self._passed:
            _signal_all([caller], number)

    def _hear(self, connection: socket.socket, selector: selectors.BaseSelector) -> None:
        caller = self.round.callers[connection]
        try:
            got = connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            got = b""
        caller.received += got
        if caller.end is None and b"\n" in caller.received:
            with contextlib.suppress(ValueError, TypeError):
                caller.end, caller.heard = End(**json.loads(caller.received)), time.monotonic()
        if not got:
            caller.open = False
            with contextlib.suppress(KeyError):
                selector.unregister(connection)

    def _release(self, agent: "subprocess.Popen[bytes]") -> None:
        """After a failure let the processes go that said theirs, once the others could."""
        if not self.round.failed():
            return
        self._failed_at = self._failed_at or time.monotonic()
        waiting = [caller for caller in self.round.living() if caller.end is None]
        if waiting and time.monotonic() - self._failed_at < HEARING:
            return
        if hasattr(signal, "SIGCONT"):  # one that was stopped ends by itself once it goes on
            _signal_all(waiting, signal.SIGCONT)
        for connection, caller in self.round.callers.items():
            if caller.open and caller.end is not None:
                with contextlib.suppress(OSError):
                    connection.send(b".")
        if self._own_error() and not self._ended_agent:  # would only come again
            self._ended_agent = True
            agent.terminate()
        over = not self.round.living() and not self.order.restarts
        if over and time.monotonic() - self._failed_at > FAREWELL:
            agent.kill()  # it may wait for a machine that cannot be reached

    def _own_error(self) -> _Caller | None:
        """The first process with an error of its own, which a new start does not mend."""
        if any(not c.open and c.end is None for c in self.round.callers.values()):
            return None  # one died without a word, and whatever the others met may come of that
        return next(
            (c for c in self.round.ranked() if c.end and c.end.code == 2 and not c.end.lost), None
        )

    @contextlib.contextmanager
    def _noting_signals(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:
            self._signals.append(number)

        before = {}
        for number in SIGNALS:
            if number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN:
                continue
            before[number] = signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_signals(self, agent: "subprocess.Popen[bytes]") -> None:
        while self._signals:
            number = self._signals.pop(0)
            self._passed.append(number)
            _signal_all(self.round.living(), number)
        if self._passed and len(self.round.callers) < self.order.processes:
            agent.terminate()  # before all have begun there is nothing to save
        elif self._passed and self.round.failed() and not self._ended_agent:
            self._ended_agent = True
            agent.terminate()

    def _end(self, agent: "subprocess.Popen[bytes]") -> None:
        """Leave no process behind."""
        if agent.poll() is None:
            agent.terminate()
            try:
                agent.wait(GRACE + 5)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()
        _signal_all(self.round.living(), signal.SIGKILL)

    def _verdict(self, folder: Path, code: int) -> int:
        """The run's exit code, or what ended it as an XciteError."""
        callers, codes = self.round.ranked(), read_ends(folder)
        if caller := self._own_error():
            assert caller.end is not None
            if caller.hello.rank == 0:
                raise XciteError(caller.end.message)
            raise XciteError(f"{_name(caller.hello)}: {caller.end.message}")
        if any(caller.end and caller.end.code == 130 for caller in callers):
            return 130
        if code == 0 and not codes and callers and all(c.end == End(0) for c in callers):
            return 0
        if self._passed and not any(caller.end for caller in callers):
            raise KeyboardInterrupt
        self.lost_one = True
        silent = [caller for caller in callers if caller.end is None]
        # The launcher saw these end first; others are ended by it, when they are stopped or stuck.
        for rank in codes:
            if codes[rank] == -signal.SIGTERM and len(codes) > 1:
                continue  # the launcher's own, to those that the first left behind
            if first := next((c for c in silent if c.hello.rank == rank), None):
                raise XciteError(_died(first.hello, codes[rank], folder))
        told = [c.end for c in sorted(callers, key=lambda c: c.heard) if c.end and c.end.message]
        if told:
            raise XciteError(told[0].message)
        if silent:
            raise XciteError(f"{_name(silent[0].hello)} ended without a word")
        self.lost_one = False
        raise XciteError(self._launcher_failed(folder, code))

    def _launcher_failed(self, folder: Path, code: int) -> str:
        """Nobody called: what the launcher wrote last."""
        with contextlib.suppress(OSError):
            text = (folder / "launcher.log").read_bytes()[-8192:].decode(errors="replace")
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            if lines:
                return f"the processes could not be started: {lines[-1]}"
        return f"the processes could not be started: {_ending('their launcher', code)}"


def _again() -> str:
    return tr("a process of this run was lost; all are started again from the last checkpoint")


def _name(hello: Hello) -> str:
    return f"process {hello.rank} of {hello.size} on {hello.host}"


def _died(hello: Hello, code: int, folder: Path) -> str:
    said = _ending(_name(hello), code)
    words = last_words(folder, hello.rank)
    return f"{said} (its last words: {words})" if words else said


def _ending(name: str, code: int) -> str:
    if code >= 0:
        return f"{name} ended with exit code {code}"
    try:
        killer = signal.Signals(-code).name
    except ValueError:
        killer = f"signal {-code}"
    if killer == "SIGKILL":
        return f"{name} was killed by SIGKILL (memory may have run out)"
    return f"{name} was killed by {killer}"


def _signal_all(callers: list[_Caller], number: int) -> None:
    for caller in callers:
        with contextlib.suppress(OSError):
            os.kill(caller.hello.pid, number)


def _without_launchers(variables: "os._Environ[str]") -> dict[str, str]:
    """The environment without what a launcher above this one, such as an operator, has set."""
    own = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    kept = {"PADDLE_DISTRI_BACKEND"}
    return {
        name: value
        for name, value in variables.items()
        if name not in own and (name in kept or not name.startswith(("PADDLE_", "TORCHELASTIC_")))
    }
