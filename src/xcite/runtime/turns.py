"""Times of several works that take turns, so that whatever else the machine does meets them all."""

import time
from collections.abc import Callable, Sequence

WARM_UP = 2  # rounds that are not counted: runtimes compile and lay out memory in them
LEAST = 3  # rounds that are counted whatever the limit


def by_turns(
    works: Sequence[Callable[[], object]],
    *,
    rounds: int,
    limit: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Seconds of each work in each counted round; every other round goes backwards.

    Args:
        rounds: that are counted at most.
        limit: seconds after which no further round begins, once `LEAST` are counted.
        clock: what is counted.
    """
    seconds: list[list[float]] = [[] for _ in works]
    began = time.perf_counter()
    for number in range(WARM_UP + rounds):
        if number >= WARM_UP + LEAST and time.perf_counter() - began > limit:
            break
        order = range(len(works)) if number % 2 else reversed(range(len(works)))
        for i in order:
            start = clock()
            works[i]()
            if number >= WARM_UP:
                seconds[i].append(clock() - start)
    return seconds
