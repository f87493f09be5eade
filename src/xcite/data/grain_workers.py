"""Items made in order by worker processes on grain.

This file alone leans on what grain does not promise: its arrays in shared memory have ``shm`` and
``_unlink_on_del``; `WithOptionsIterDataset` is experimental; a worker that died is told by the
wording of a RuntimeError; worker processes are spawned within `next`, so that what such a process
unpickles first runs before grain is imported there.
"""

import contextlib
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import connection, resource_tracker
from typing import Any

import numpy as np

from xcite.data.shared_memory import name_segments_after, remove_segments_of_the_dead
from xcite.errors import XciteError

_SHARED_MEMORY = "/dev/shm"
# Sent to all processes of a terminal or of a batch job, and for the main process to obey.
_TO_THE_GROUP = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


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
    ) -> None:
        self.position = steps.start
        self.stop = steps.stop
        grain = _grain()
        items = grain.MapDataset.range(steps.start, steps.stop).map(make)
        # no threads: a worker makes one batch after the other, and more workers make more
        dataset = items.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        if workers:
            with _shielded_children():  # it outlives the workers, to remove what they leave
                resource_tracker.ensure_running()
            # every worker holds `prefetch` batches ready, and so does this process for it
            needed = 2 * (prefetch + 1) * workers * bytes_per_item
            smallest = 1 << 16 if _shared_memory_free() > needed else 1 << 62  # else through pipes
            options = grain.experimental.DatasetOptions(min_shm_size=smallest)
            dataset = grain.experimental.WithOptionsIterDataset(dataset, options)
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch),
                worker_init_fn=_start_worker,
            )
        self._iterator = iter(dataset)
        self._workers = workers

    def next(self) -> dict[str, Any]:
        """The item of the next step.

        Raises:
            XciteError: a worker process died; what ``make`` raises is raised as it is.
        """
        try:
            with _prepared_start() if self._workers else contextlib.nullcontext():
                item: dict[str, Any] = next(self._iterator)
        except BaseException as error:
            self.close()
            if isinstance(error, RuntimeError) and "terminated unexpectedly" in str(error):
                raise XciteError(
                    "a data worker process ended unexpectedly, perhaps because memory ran out; "
                    "lower data.workers, data.prefetch or optim.batch"
                ) from error
            raise
        self.position += 1
        return item

    def close(self) -> None:
        """End the worker processes."""
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()


def owned(array: np.ndarray) -> np.ndarray:
    """A plain array; shared memory that it lay in is given back at once.

    Copying a batch is cheap beside making it, and grain's arrays complain when they outlive the
    interpreter's modules, as a script's last batch does.
    """
    shared = getattr(array, "shm", None)
    if shared is None:
        return array
    array._unlink_on_del = False  # type: ignore[attr-defined]
    shared.unlink()
    return np.array(array, subok=False)


def _grain() -> Any:
    import absl.logging

    absl.logging.set_verbosity(
        absl.logging.ERROR
    )  # it warns that JAX is missing; nothing here needs it
    import grain

    return grain


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
