"""Is the cost linear? Time and peak memory against resolution, batch 1, with fitted exponents.

    python benchmarks/scaling.py [--engine torch] [--picture docs/scaling.png] [--largest 1792]

Every point runs in a process of its own, so that memory is that point's alone. The exponent is the
slope of log(cost) over log(tokens) from 448 px up. Prints a Markdown table.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np

SIZES = (224, 320, 448, 640, 896, 1280, 1792)
FITTED_FROM = 448
POINT = """
import json, sys
from xcite.evaluation.throughput import measure
from xcite.variants import find
name, engine, height, width, train, repeats = json.loads(sys.argv[1])
print(json.dumps(measure(find(name), engine=engine, batch=1, height=height, width=width,
                         train=train, repeats=repeats, warmup=1).to_json()))
"""


def measured(
    name: str, engine: str, height: int, width: int, train: bool, repeats: int = 5
) -> dict[str, float]:
    """Median seconds and peak MiB of one forward pass or training step."""
    call = json.dumps([name, engine, height, width, train, repeats])
    done = subprocess.run(
        [sys.executable, "-c", POINT, call], capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": float(np.median(result["seconds"])), "memory": result["peak_memory"]}


def exponent(tokens: list[int], cost: list[float]) -> float:
    """Slope of the least-squares line through log(cost) over log(tokens)."""
    return float(np.polyfit(np.log(tokens), np.log(cost), 1)[0])


def main() -> None:
    """Measure, print a Markdown table, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--models", nargs="+", default=["xcit_nano_12_p16", "xcit_nano_12_p8"])
    parser.add_argument("--largest", type=int, default=1792)
    parser.add_argument("--huge", action="store_true", help="one picture of 6000 x 4000 as well")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    sizes = [size for size in SIZES if size <= options.largest]
    print("| model | work | " + " | ".join(f"{s} px" for s in sizes) + " | exponent |")
    print("| --- | --- |" + " --- |" * (len(sizes) + 1))
    curves = []
    for name in options.models:
        patch = int(name.rsplit("_p", 1)[1])
        tokens = [math.ceil(size / patch) ** 2 for size in sizes]
        fitted = [i for i, size in enumerate(sizes) if size >= FITTED_FROM]
        for train in (False, True):
            points = [measured(name, options.engine, s, s, train) for s in sizes]
            for key, unit, digits in (("seconds", "s", 3), ("memory", "MiB", 0)):
                cost = [point[key] for point in points]
                slope = exponent([tokens[i] for i in fitted], [cost[i] for i in fitted])
                work = f"{'training step' if train else 'forward'}, {unit}"
                cells = " | ".join(f"{value:.{digits}f}" for value in cost)
                print(f"| {name} | {work} | {cells} | {slope:.3f} |", flush=True)
                curves.append((f"{name}, {work}", unit, tokens, cost, slope))
    if options.huge:
        print("\n| one picture of 6000 x 4000 | s | MiB |\n| --- | --- | --- |")
        for name in ("xcit_nano_12_p16", "xcit_small_12_p16"):
            point = measured(name, options.engine, 4000, 6000, False, 2)
            print(f"| {name} | {point['seconds']:.1f} | {point['memory']:.0f} |", flush=True)
    if options.picture:
        draw(curves, options.picture)


def draw(curves: list[tuple[str, str, list[int], list[float], float]], picture: Path) -> None:
    """Two log-log panels: seconds and MiB over tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for panel, unit in zip(panels, ("s", "MiB"), strict=True):
        for label, of, tokens, cost, slope in curves:
            if of == unit:
                panel.loglog(tokens, cost, "o-", label=f"{label.rsplit(',', 1)[0]} ({slope:.2f})")
        panel.set(xlabel="tokens", ylabel={"s": "seconds", "MiB": "peak memory, MiB"}[unit])
        panel.grid(True, which="both", alpha=0.25)
        panel.legend(title="fitted exponent in brackets", fontsize=8)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main()
