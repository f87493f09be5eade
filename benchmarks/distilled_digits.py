"""Does a teacher help? A small RegNetY teaches a small XCiT on real handwritten digits.

Trains the teacher, then the same student without and with it, the same number of steps each, and
prints the accuracies of all three on the validation digits:

    python benchmarks/distilled_digits.py [--engine paddle] [--seeds 0 1]

It runs what a person would type; the commands are printed as they run. `make demo-distill` is this.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

NOTHING = ["distill.loss=none", "distill.teacher=null"]


def main() -> None:
    """Train all three for every seed and print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="paddle", choices=("paddle", "torch"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, help="folder for the runs; a new one below runs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    Path("runs").mkdir(exist_ok=True)
    out = options.out or Path(tempfile.mkdtemp(prefix="distilled-digits-", dir="runs"))

    teacher = out / "teacher"
    run = [f"run.engine={options.engine}", *options.set]
    train("digits-teacher", teacher, run)
    students: dict[str, list[float]] = {"alone": [], "with the teacher": []}
    for seed in options.seeds:
        seeded = [*run, f"run.seed={seed}"]
        alone, taught = out / f"alone-{seed}", out / f"taught-{seed}"
        train("digits-distilled", alone, [*seeded, *NOTHING])
        train("digits-distilled", taught, [*seeded, f"distill.teacher={teacher}"])
        students["alone"].append(last_top1(alone))
        students["with the teacher"].append(last_top1(taught))

    print(f"\ntop-1 on the validation digits after the last epoch, {options.engine}")
    print(f"  teacher                    {last_top1(teacher):6.2f} %")
    for name, accuracies in students.items():
        each = ", ".join(f"{value:.2f}" for value in accuracies)
        seeds = f"   (seeds {', '.join(map(str, options.seeds))}: {each})" if accuracies[1:] else ""
        print(f"  student {name:<18} {statistics.mean(accuracies):6.2f} %{seeds}")
    print(f"runs are in {out}")


def train(recipe: str, folder: Path, settings: list[str]) -> None:
    """Run `xcite train` in a process of its own."""
    command = ["train", recipe, "--out", str(folder)]
    for setting in settings:
        command += ["--set", setting]
    print(f"\n$ xcite {' '.join(command)}", flush=True)
    subprocess.run([sys.executable, "-m", "xcite.cli", *command], check=True)


def last_top1(folder: Path) -> float:
    """Accuracy of the model after the last epoch, in per cent."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    epochs = [row for row in map(json.loads, lines) if row["kind"] == "epoch" and "acc1" in row]
    return float(epochs[-1]["acc1"])


if __name__ == "__main__":
    main()
