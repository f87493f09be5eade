"""A coordinate search over a few knobs by noisy times."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xcite.choices import Choices

ROUNDS = 7  # turns of each value at most
LEAST_GAIN = 0.02  # of the time; less is not worth another way
CLEARLY = 0.10  # a value so much slower than the best is not tried again


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        choices: the fastest.
        before: median seconds with the choices that the search began with.
        after: median seconds with ``choices``, its turns alternating with those of ``before``.
        measured: how many times something was timed.
        seconds: that the search took.
    """

    choices: Choices
    before: float
    after: float
    measured: int
    seconds: float


def search(
    start: Choices,
    knobs: Mapping[str, Sequence[Any]],
    timed: Callable[[Choices], float],
    *,
    limit: float,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Turn one knob after the other to its fastest value, until none is left or time is up.

    The values of a knob take turns, so that whatever else the machine does meets all of them. A
    value is taken only if it is faster than the one before by more than `LEAST_GAIN` and by more
    than the turns differ among each other.

    Args:
        start: what to begin with.
        knobs: name of a choice to the values to try, the most promising knob first.
        timed: seconds of one step with these choices.
        limit: seconds after which no other value is tried.
    """
    began = clock()
    best, measured = start, 0
    for knob, values in knobs.items():
        tried = {value: best.model_copy(update={knob: value}) for value in values}
        tried.pop(getattr(best, knob), None)
        times: dict[Choices, list[float]] = {best: [], **{one: [] for one in tried.values()}}
        for turn in range(ROUNDS):
            if len(times) == 1 or clock() - began > limit:
                break
            for one in times:
                times[one].append(timed(one))
                measured += 1
            times = _promising(times, best, clearly=0.0 if turn >= ROUNDS // 2 else CLEARLY)
        best = _fastest(times, best)
    before, after, more = _compared(start, best, timed)
    if after >= before:  # what looked faster was noise
        best, after = start, before
    return Found(best, before, after, measured + more, clock() - began)


def _promising(
    times: dict[Choices, list[float]], incumbent: Choices, *, clearly: float
) -> dict[Choices, list[float]]:
    """Without values that are surely slower; the one to beat stays for comparison."""
    medians = {one: statistics.median(found) for one, found in times.items()}
    fastest = min(medians.values())
    spread = max(_spread(found) for found in times.values())
    most = fastest * (1 + max(clearly, LEAST_GAIN)) + spread
    return {one: found for one, found in times.items() if one is incumbent or medians[one] <= most}


def _fastest(times: dict[Choices, list[float]], incumbent: Choices) -> Choices:
    if not times[incumbent] or len(times) == 1:
        return incumbent
    medians = {one: statistics.median(found) for one, found in times.items() if found}
    best = min(medians, key=medians.__getitem__)
    gain = medians[incumbent] - medians[best]
    noise = max(_spread(times[incumbent]), _spread(times[best])) / len(times[best]) ** 0.5
    return best if gain > max(noise, LEAST_GAIN * medians[incumbent]) else incumbent


def _spread(found: Sequence[float]) -> float:
    """Half the distance of the quartiles; 0 of fewer than three."""
    if len(found) < 3:
        return 0.0
    low, _, high = statistics.quantiles(found, n=4, method="inclusive")
    return (high - low) / 2


def _compared(
    start: Choices, best: Choices, timed: Callable[[Choices], float]
) -> tuple[float, float, int]:
    if best == start:
        seconds = timed(start)
        return seconds, seconds, 1
    turns = [(timed(start), timed(best)) for _ in range(3)]
    before, after = (statistics.median(side) for side in zip(*turns, strict=True))
    return before, after, 2 * len(turns)
