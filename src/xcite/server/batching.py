"""Dynamic batching: pictures of many requests are answered together by one worker."""

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class QueueFullError(Exception):
    """Every place is taken; try again after ``retry_after`` whole seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"every place is taken, try again in {retry_after} s")
        self.retry_after = retry_after


class Batcher(Generic[Item, Answer]):
    """Collects items into batches and answers them in a thread of its own, in order of arrival.

    A batch starts when it is full, or when its first item has waited ``wait`` seconds. An exception
    of ``answer`` goes to the items of that batch alone; the worker goes on.

    Args:
        answer: items of one batch to as many answers, in the same order.
        batch: most items in one call of ``answer``.
        wait: seconds an item may wait for company.
        places: items admitted and not yet released; `admit` refuses more.
        observe: called with the size of every batch.
        observe_taken: called with the number of places in use when it changes.
    """

    def __init__(
        self,
        answer: Callable[[list[Item]], Sequence[Answer]],
        *,
        batch: int = 16,
        wait: float = 0.002,
        places: int = 256,
        observe: Callable[[int], None] = lambda size: None,
        observe_taken: Callable[[int], None] = lambda taken: None,
    ) -> None:
        self._answer = answer
        self._batch = batch
        self._wait = wait
        self._places = places
        self._observe = observe
        self._observe_taken = observe_taken
        self._taken = 0
        self._seconds_per_item = 0.0  # moving average, for Retry-After
        self._items: deque[tuple[float, Item, Future[Answer]]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._worker = threading.Thread(target=self._work, name="xcite-batcher", daemon=True)
        self._worker.start()

    @property
    def alive(self) -> bool:
        """Whether items are still answered."""
        return self._worker.is_alive()

    @property
    def taken(self) -> int:
        """Places in use: items admitted and not yet released."""
        return self._taken

    @contextlib.contextmanager
    def admit(self, count: int = 1) -> Iterator[None]:
        """Hold ``count`` places while the items are prepared, waiting and answered.

        Raises:
            QueueFullError: there are not as many free places.
        """
        with self._changed:
            if self._taken + count > self._places:
                seconds = math.ceil(self._taken * self._seconds_per_item)
                raise QueueFullError(min(max(seconds, 1), 60))
            self._taken += count
            self._observe_taken(self._taken)
        try:
            yield
        finally:
            with self._changed:
                self._taken -= count
                self._observe_taken(self._taken)

    def submit(self, item: Item) -> "Future[Answer]":
        """Queue an item that has a place; cancelling the future drops it from its batch."""
        future: Future[Answer] = Future()
        with self._changed:
            if self._closing:
                raise RuntimeError("the batcher is closed")
            self._items.append((time.monotonic(), item, future))
            self._changed.notify()
        return future

    def close(self, timeout: float | None = None) -> None:
        """Answer everything that was submitted, then stop; wait ``timeout`` seconds for that."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._worker.join(timeout)

    def _next(self) -> list[tuple[Item, "Future[Answer]"]] | None:
        """Wait for the next batch; None when closed and nothing is left."""
        with self._changed:
            while not self._items:
                if self._closing:
                    return None
                self._changed.wait()
            start = self._items[0][0] + self._wait
            while len(self._items) < self._batch and not self._closing:
                remaining = start - time.monotonic()
                if remaining <= 0:
                    break
                self._changed.wait(remaining)
            taken = [self._items.popleft() for _ in range(min(self._batch, len(self._items)))]
        # a request that ran out of time has cancelled its future: nobody waits for that answer
        return [
            (item, future) for _, item, future in taken if future.set_running_or_notify_cancel()
        ]

    def _work(self) -> None:
        while (pairs := self._next()) is not None:
            if not pairs:
                continue
            started = time.monotonic()
            try:
                answers = self._answer([item for item, _ in pairs])
                for (_, future), answer in zip(pairs, answers, strict=True):
                    future.set_result(answer)
            except BaseException as error:
                for _, future in pairs:
                    if not future.done():
                        future.set_exception(error)
            self._observe(len(pairs))
            pace = (time.monotonic() - started) / len(pairs)
            self._seconds_per_item += 0.2 * (pace - self._seconds_per_item)
