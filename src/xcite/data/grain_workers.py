"""Items made in order by worker processes on grain.

This file alone leans on what grain does not promise: its arrays in shared memory have ``shm`` and
``_unlink_on_del``, and what describes one is opened as one; `WithOptionsIterDataset` is
experimental; a worker that died is told by the wording of a RuntimeError; worker processes are
spawned within `next`, so that what such a process unpickles first runs before grain is imported.
"""

import contextlib
import errno
import mmap
import multiprocessing
import os
import queue
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import connection, resource_tracker, shared_memory
from typing import Any

import numpy as np

from xcite.data.shared_memory import name_segments_after, remove_segments_of_the_dead
from xcite.errors import XciteError
from xcite.machine import known_signals, open_files_limit

_SHARED_MEMORY = "/dev/shm"
_BUS_ERROR = getattr(signal, "SIGBUS", 0)  # of a process that shared memory ran out for
_FILES_PER_WORKER = 24  # that this process holds open: 18 and those of its batches
_SMALLEST_SHARED = 1 << 16  # bytes; smaller arrays go through pipes
_READ, _FILLED = 0, 1  # the last byte of a segment that is used again
_JOINING = 5.0  # seconds for the thread that asks grain to notice that all is closed
# Sent to all processes of a terminal or of a batch job, and for the main process to obey.
_TO_THE_GROUP = known_signals("SIGHUP", "SIGUSR1", "SIGUSR2")


class Reader:
    """Items of ``make`` for a range of steps, in order, from worker processes on grain.

    Attributes:
        position: the step that `next` gives.
        stop: the step after the last.
    """

    def __init__(
        self,
        make: Callable[[int], dict[str, Any]],
        steps: range,
        *,
        workers: int,
        prefetch: int,
        bytes_per_item: int,
        timeout: float = 300.0,
    ) -> None:
        """Args:
        bytes_per_item: of the array that makes up nearly all of an item.
        timeout: seconds that `next` waits before a worker counts as stuck; a time in which this
            process was stopped itself does not count.
        """
        self.position = steps.start
        self.stop = steps.stop
        self._workers = workers
        if workers:
            self._require_files()
        self._segments: set[str] = set()  # that workers use again
        grain = _grain()
        # every worker holds `prefetch` batches ready, and so does this process for it
        needed = 2 * (prefetch + 1) * workers * bytes_per_item
        sharing = workers > 0 and _shared_memory_free() > needed  # else through pipes
        if sharing and bytes_per_item >= _SMALLEST_SHARED:
            make = _InUsedMemory(make, bytes_per_item)
        items = grain.MapDataset.range(steps.start, steps.stop).map(make)
        # no threads: a worker makes one batch after the other, and more workers make more
        dataset = items.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        if workers:
            if os.name == "posix":  # it outlives the workers, to remove what they leave
                with _shielded_children():
                    resource_tracker.ensure_running()
            smallest = _SMALLEST_SHARED if sharing else 1 << 62
            options = grain.experimental.DatasetOptions(min_shm_size=smallest)
            dataset = grain.experimental.WithOptionsIterDataset(dataset, options)
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch),
                worker_init_fn=_start_worker,
            )
        self._timeout = timeout
        self._others = set(multiprocessing.active_children())
        self._asking: threading.Thread | None = None
        try:
            self._iterator = iter(dataset)
        except Exception as error:
            raise self._in_words(error) from error

    def next(self) -> dict[str, Any]:
        """The item of the next step, its arrays outside shared memory.

        Raises:
            XciteError: a worker process died or is stuck, or the machine has too little of
                something; what ``make`` raises is raised as it is.
        """
        try:
            item: dict[str, Any] = self._bounded() if self._workers else next(self._iterator)
        except BaseException as error:
            self.close()
            if isinstance(error, Exception):
                raise self._in_words(error) from error
            raise
        self.position += 1
        return {key: self._owned(value) for key, value in item.items()}

    def _owned(self, value: Any) -> Any:
        """A plain array for one in shared memory, which its worker may use again or which is freed.

        Copying a batch is cheap beside making it, and grain's arrays complain when they outlive
        the interpreter's modules, as a script's last batch does.
        """
        shared = getattr(value, "shm", None)
        if shared is None:
            return value
        value._unlink_on_del = False
        if shared.size < value.nbytes + mmap.PAGESIZE:
            shared.unlink()
            return np.array(value, subok=False)
        self._segments.add(shared.name)
        array = np.array(value, subok=False)
        shared.buf[-1] = _READ
        return array

    def _bounded(self) -> dict[str, Any]:
        """Ask grain in a thread: a worker that is stopped, or died while it wrote, never answers.

        Raises:
            XciteError: no answer within the time.
        """
        answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def ask() -> None:
            try:
                with _prepared_start():
                    answers.put((next(self._iterator), None))
            except BaseException as error:
                answers.put((None, error))

        self._asking = threading.Thread(target=ask, daemon=True)
        self._asking.start()
        waited = 0.0
        while True:
            try:  # in short waits, so that hours under Ctrl-Z count as one of them
                item, error = answers.get(timeout=min(1.0, self._timeout))
            except queue.Empty:
                waited += min(1.0, self._timeout)
                if waited >= self._timeout:
                    raise self._stuck() from None
                continue
            if error is not None:
                raise error
            return dict(item)

    def _stuck(self) -> XciteError:
        stopped = [process.pid for process in self._processes() if _state(process.pid) == "T"]
        reason = f"process {stopped[0]} is stopped" if stopped else "its data may not answer"
        return XciteError(
            f"a data worker has given nothing for {self._timeout:g} seconds ({reason}); "
            "raise data.worker_timeout if batches may take as long",
            remedy=f"--set data.worker_timeout={2 * self._timeout:g}",
        )

    def _processes(self) -> list[Any]:
        return [p for p in multiprocessing.active_children() if p not in self._others]

    def close(self) -> None:
        """End the worker processes."""
        if self._asking is not None and self._asking.is_alive():
            for process in self._processes():  # they may be stopped, which only this ends
                process.kill()
        close = getattr(self._iterator, "close", None)
        if close is not None:
            with contextlib.suppress(AssertionError):  # of a worker that never started
                close()
        if self._asking is not None:
            self._asking.join(_JOINING)
            self._asking = None
        while self._segments:
            with contextlib.suppress(FileNotFoundError):  # grain frees those with an item unread
                segment = shared_memory.SharedMemory(self._segments.pop())
                segment.close()
                segment.unlink()

    def _require_files(self) -> None:
        """Raise XciteError where the workers' pipes cannot be opened: grain would leave pieces."""
        limit = open_files_limit()
        with contextlib.suppress(OSError):
            used = len(os.listdir("/dev/fd"))
            if limit is not None and limit < used + _FILES_PER_WORKER * self._workers:
                raise self._too_few_files()

    def _too_few_files(self) -> XciteError:
        return XciteError(
            f"{self._workers} data workers need more open files than the {open_files_limit()} "
            "allowed; raise the limit (`ulimit -n 4096`) or lower data.workers",
            remedy="--set data.workers=0",
        )

    def _in_words(self, error: Exception) -> Exception:
        """What the user can do about a lack of something; other errors stay as they are."""
        text, number = str(error), getattr(error, "errno", None)
        died = re.search(r"terminated unexpectedly with exit code (-?\d+)", text)
        if number in (errno.EMFILE, errno.ENFILE):
            return self._too_few_files()
        if number == errno.ENOSPC or (died and int(died[1]) == -_BUS_ERROR):
            return XciteError(
                f"{_SHARED_MEMORY} is full, which data workers need; enlarge it (with containers: "
                "--shm-size=1g), remove what others left there, or set data.workers to 0",
                remedy="--set data.workers=0",
            )
        scarce = number in (errno.ENOMEM, errno.EAGAIN) or "can't start new thread" in text
        if died or scarce or isinstance(error, MemoryError):
            return XciteError(
                "a data worker process ended unexpectedly, perhaps because memory ran out; "
                "lower data.workers, data.prefetch or optim.batch",
                remedy=f"--set data.workers={self._workers // 2}",
            )
        return error


class _InUsedMemory:
    """What ``make`` makes, its large array in shared memory that was used before, where there is.

    Fresh memory costs a worker ten times the copying: each of its pages is cleared and mapped.
    A segment's last byte, a page behind the array, says whether the array has been read. So
    there are as many as are on the way at a time, and `Reader.close` removes them.
    """

    def __init__(self, make: Callable[[int], dict[str, Any]], size: int) -> None:
        """Args:
        size: bytes of the array; those of other sizes, like a smaller last batch, go without.
        """
        self._make = make
        self._size = size
        self._segments: list[Any] = []  # of this worker

    def __call__(self, step: int) -> dict[str, Any]:
        return {key: self._shared(value) for key, value in self._make(step).items()}

    def _shared(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray) or value.nbytes != self._size:
            return value
        segment = next((each for each in self._segments if each.shm.buf[-1] == _READ), None)
        if segment is None:
            segment = _grain().multiprocessing.SharedMemoryArray(
                (self._size + mmap.PAGESIZE,), np.uint8
            )
            self._segments.append(segment)
        np.ndarray(value.shape, value.dtype, segment.shm.buf)[...] = value
        segment.shm.buf[-1] = _FILLED
        return replace(segment.metadata, shape=value.shape, dtype=value.dtype)


def _grain() -> Any:
    import absl.logging

    absl.logging.set_verbosity(
        absl.logging.ERROR
    )  # it warns that JAX is missing; nothing here needs it
    import grain

    return grain


def _state(pid: int) -> str:
    """Of a process, one letter as in `ps`: "T" is stopped."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "?"


def _shared_memory_free() -> int:
    try:
        return shutil.disk_usage(_SHARED_MEMORY).free
    except OSError:
        return 0


def _start_worker(index: int, count: int) -> None:
    """Runs in each worker process before its first batch."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        name_segments_after(parent.pid)
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
    """End this worker when the main process is gone, however it went."""
    connection.wait([sentinel])
    remove_segments_of_the_dead()
    os._exit(1)


def _before_grain() -> None:
    # What a terminal or a batch system sends to the whole group is the main process's to handle.
    for number in (signal.SIGINT, *_TO_THE_GROUP):
        signal.signal(number, signal.SIG_IGN)
    _grain()


class _EarlyStart:
    """Prepares a new process, which unpickles this before it imports grain."""

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return _before_grain, ()


@contextlib.contextmanager
def _shielded_children() -> Iterator[None]:
    """Processes started here do not see signals to the group; this one gets them afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TO_THE_GROUP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _prepared_start() -> Iterator[None]:
    # A new process unpickles this dictionary before the function that it is to run.
    configuration: dict[str, Any] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    configuration["xcite"] = _EarlyStart()
    try:
        with _shielded_children():
            yield
    finally:
        configuration.pop("xcite", None)
