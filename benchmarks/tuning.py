"""Regret of the tuner: what it picks against the best of all combinations of its knobs.

    python benchmarks/tuning.py
    python benchmarks/tuning.py --points torch:xcit_nano_12_p8:16:float32

All combinations are timed on the model with few blocks that the tuner times, the better half of
them again and again until one is left. Then the default, the tuner's choice and that one take turns
on the whole model; regret is the tuner's median time over that of the best of the three, less one.

Prints a Markdown table.
"""

import argparse
import itertools
import statistics

from xcite.choices import Choices
from xcite.engines import installed
from xcite.tuning.knobs import Work, knobs
from xcite.tuning.search import search
from xcite.tuning.step import Timed
from xcite.variants import find

POINTS = (
    "torch:xcit_nano_12_p8:16:float32",
    "torch:xcit_nano_12_p16:16:float32",
    "torch:xcit_tiny_12_p8:4:float32",
    "torch:xcit_small_12_p16:4:float32",
    "torch:xcit_nano_12_p8:16:bf16",
    "torch:xcit_small_12_p16:4:bf16",
    "paddle:xcit_nano_12_p8:8:float32",
    "paddle:xcit_small_12_p16:4:float32",
)


def exhaustive(work: Work, start: Choices, timed: Timed) -> tuple[Choices, int]:
    """The fastest of all combinations, and how many there are."""
    values = knobs(work)
    rest = {
        start.model_copy(update=dict(zip(values, combination, strict=True))): list[float]()
        for combination in itertools.product(*values.values())
    }
    count = len(rest)
    while len(rest) > 1:
        for choices, times in rest.items():
            times.append(timed(choices))
            if len(rest) <= 8:
                times += [timed(choices) for _ in range(2)]
        order = sorted(rest, key=lambda one: statistics.median(rest[one]))
        rest = {one: rest[one] for one in order[: (len(order) + 1) // 2]}
    return next(iter(rest)), count


def row(point: str, repeats: int) -> str:
    """One line of the table."""
    engine, model, batch, precision = point.split(":")
    work = Work(find(model), engine, int(batch), 224, 224, precision)
    timed = Timed(work)
    start = timed.choices
    found = search(start, knobs(work), timed, limit=60.0)
    best, combinations = exhaustive(work, start, timed)
    whole = Timed(work, whole=True)
    seconds: dict[str, list[float]] = {"default": [], "tuned": [], "best": []}
    for _ in range(repeats):
        for name, choices in (("default", start), ("tuned", found.choices), ("best", best)):
            seconds[name].append(whole(choices))
    default, tuned, all_ = (statistics.median(times) for times in seconds.values())
    regret = tuned / min(default, tuned, all_) - 1
    return (
        f"| {model} | {batch} | {engine} | {precision} | {default:.3f} s | {tuned:.3f} s "
        f"| {all_:.3f} s of {combinations} | {regret:.1%} | {found.seconds:.0f} s "
        f"| {_turned(start, found.choices)} | {_turned(start, best)} |"
    )


def _turned(start: Choices, choices: Choices) -> str:
    """What is not as it was at the start."""
    return ", ".join(
        f"{knob} {value:g}" if isinstance(value, float) else f"{knob} {value}"
        for knob, value in choices.model_dump().items()
        if value != getattr(start, knob)
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", nargs="+", default=POINTS, help="ENGINE:MODEL:BATCH:PRECISION")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(
        "| model | batch | engine | precision | default | tuned | best | regret | search | turned "
        "| the best turned |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for point in options.points:
        if point.split(":")[0] in installed():
            print(row(point, options.repeats), flush=True)


if __name__ == "__main__":
    main()
