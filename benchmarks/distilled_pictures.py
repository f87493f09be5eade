"""Does a trained ImageNet teacher help on pictures of your own?

Fits a head of the pictures' classes on the teacher's features, then trains the same student alone
and taught from cached answers, the same number of steps each, for every seed:

    python benchmarks/distilled_pictures.py caltech101_20 --recipe caltech --engine torch \
        --seeds 0 1 2 --losses hard soft --set optim.epochs=20

The folder holds train and val. It runs what a person would type; the commands are printed as they
run. Prints a Markdown table: gains are over the student alone with the same seed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Train all students and print their accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--recipe", default="caltech")
    parser.add_argument("--teacher", default="efficientnet_lite0")
    parser.add_argument("--engine", default="paddle", choices=("paddle", "torch"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--losses", nargs="+", default=["hard", "soft"])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    Path("runs").mkdir(exist_ok=True)
    out = Path(tempfile.mkdtemp(prefix="distilled-", dir="runs"))

    teacher = out / "teacher.safetensors"
    xcite("fit-head", options.teacher, options.pictures, teacher, "--engine", options.engine)
    data = [f"data.train={options.pictures}/train", f"data.validation={options.pictures}/val"]
    found: dict[str, list[float]] = {"alone": [], **{loss: [] for loss in options.losses}}
    for seed in options.seeds:
        run = [*data, f"run.engine={options.engine}", f"run.seed={seed}", *options.set]
        found["alone"].append(train(options.recipe, out / f"alone-{seed}", run))
        for loss in options.losses:
            taught = [*run, f"distill.loss={loss}", f"distill.teacher={teacher}"]
            cache = out / f"answers-{loss}-{seed}"
            xcite("teach", options.recipe, "--out", cache, *settings(taught))
            folder = out / f"{loss}-{seed}"
            found[loss].append(train(options.recipe, folder, [*taught, f"distill.cache={cache}"]))

    print("\n| student | top-1, last epoch | mean | gain | standard error of the gain |")
    print("| --- | --- | ---: | ---: | ---: |")
    for name, values in found.items():
        each = ", ".join(f"{value:.2f}" for value in values)
        gains = [a - b for a, b in zip(values, found["alone"], strict=True)]
        row = f"| {name} | {each} | {statistics.mean(values):.2f} % |"
        if name == "alone":
            print(f"{row} | |")
            continue
        error = statistics.stdev(gains) / len(gains) ** 0.5 if gains[1:] else float("nan")
        print(f"{row} {statistics.mean(gains):+.2f} | {error:.2f} |")


def xcite(*words: object) -> None:
    """Run a command in a process of its own."""
    command = list(map(str, words))
    print(f"\n$ xcite {' '.join(command)}", flush=True)
    subprocess.run([sys.executable, "-m", "xcite", *command], check=True)


def settings(values: list[str]) -> list[str]:
    """As options of a command."""
    return [word for value in values for word in ("--set", value)]


def train(recipe: str, folder: Path, values: list[str]) -> float:
    """Top-1 of the model after the last epoch, in per cent."""
    xcite("train", recipe, "--out", folder, *settings(values))
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    epochs = [row for row in map(json.loads, lines) if row["kind"] == "epoch" and "acc1" in row]
    return float(epochs[-1]["acc1"])


if __name__ == "__main__":
    main()
