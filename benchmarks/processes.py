"""What several processes on one machine cost: `xcite train` with one, and with two that share it.

    python benchmarks/processes.py --model xcit_nano_12_p16 --size 224 --batch 32

Both take turns, each with all cores: one process with as many threads, or processes that share
them. On a CPU that gains nothing by itself, so the ratio is the cost of exchanging gradients and
BatchNorm's sums, and of two Pythons instead of one. Prints a Markdown table of pictures a second,
medians over the steps of all rounds but the first steps of each.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from xcite.engines import installed

WARMING = 3  # steps of a run that are not counted


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="xcit_nano_12_p16")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()

    print(f"| engine | 1 process | {options.processes} processes | ratio |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        count = options.batch * options.steps
        pictures = make_pictures(Path(folder) / "pictures", count, options.size)
        for engine in installed():
            speeds: dict[int, list[float]] = {1: [], options.processes: []}
            for number in range(options.rounds):
                for processes, found in speeds.items():
                    run = Path(folder) / f"{engine}-{processes}-{number}"
                    found += train(pictures, run, engine, processes, options)
            alone, shared = (statistics.median(found) for found in speeds.values())
            print(f"| {engine} | {alone:.1f} | {shared:.1f} | {shared / alone:.2f} |", flush=True)


def make_pictures(folder: Path, count: int, size: int) -> Path:
    """Pictures of noise in two classes."""
    random = np.random.default_rng(0)
    for number in range(count):
        name = folder / "ab"[number % 2] / f"{number}.jpg"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (size, size, 3), np.uint8)).save(name)
    return folder


def train(
    pictures: Path, run: Path, engine: str, processes: int, options: argparse.Namespace
) -> list[float]:
    """Pictures a second in each step of a run."""
    recipe = run.with_suffix(".yaml")
    recipe.write_text(
        f"model: {{name: {options.model}}}\n"
        f"data: {{train: {pictures}, workers: 1}}\n"
        f"preprocessing: {{size: {options.size}}}\n"
        f"augment: {{randaugment: null}}\n"
        f"optim: {{epochs: 1, batch: {options.batch}, warmup_epochs: 0}}\n"
        f"run: {{engine: {engine}, precision: float32, log_every: 1, keep: 0,\n"
        f"  tune: 'off'}}\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "xcite", "train", str(recipe), "--out", str(run)]
    command += ["--processes", str(processes)] if processes > 1 else []
    subprocess.run(command, check=True, capture_output=True)
    rows = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    speeds = [row["pictures_per_second"] for row in rows if row["kind"] == "step"]
    return speeds[WARMING:]


if __name__ == "__main__":
    main()
