"""Does a trained ImageNet teacher help on pictures of your own?

Fits a head of the pictures' classes on the teacher's features, then trains the same student in
several ways, the same number of steps each, for every seed:

    python benchmarks/distilled_pictures.py caltech101_20 --recipe caltech --engine torch \
        --seeds 0 1 2 --set optim.epochs=20

The folder holds train and val. It runs what a person would type; the commands are printed as they
run, and results as they come. Prints a Markdown table: gains are over the student alone with the
same seed, unless --taught-only. "matching" hears the teacher alone; "features" learns the
teacher's features beside the labels; "pretrained" learns them without any labels for the first part
of the steps, then trains alone for the rest; "labelled" learns the teacher's classes so. Their
pictures without labels may be others, and how many epochs of each is told so that the steps are as
many as those of the others. "more" hears the teacher alone about those pictures, in class folders
that nobody looks at:

    ... --ways labelled more --unlabelled more_pictures --before 2 --after 10

A process a seed uses several cores: the rows of --seeds 0 and --seeds 1 go together.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = {
    "alone": [],
    "hard": ["distill.loss=hard"],
    "soft": ["distill.loss=soft"],
    "dml": ["distill.loss=dml"],
    "matching": ["distill.loss=dml", "distill.alpha=1"],
    "features": ["distill.loss=cosine", "distill.space=features"],
    "pretrained": ["distill.loss=cosine", "distill.space=features", "distill.alpha=1"],
    "more": ["distill.loss=dml", "distill.alpha=1"],
    "labelled": ["distill.loss=dml", "distill.space=teacher-classes", "distill.alpha=1"],
}
IN_TWO_PARTS = ("pretrained", "labelled")


def main() -> None:
    """Train all students and print their accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--recipe", default="caltech")
    parser.add_argument("--teacher", default="efficientnet_lite0")
    parser.add_argument("--fitted", type=Path, help="a teacher that fit-head has made already")
    parser.add_argument("--program", help="the same teacher as `xcite export` wrote it: faster")
    parser.add_argument("--engine", default="paddle", choices=("paddle", "torch"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--taught-only", action="store_true", help="leave the student alone out")
    parser.add_argument("--unlabelled", type=Path, help="else the training pictures")
    parser.add_argument("--more-views", type=int, help="answers a picture of more; else all ways'")
    parser.add_argument("--before", type=int, help="epochs without labels; else half of all")
    parser.add_argument("--after", type=int, help="epochs with labels then; else the other half")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    first = [] if options.taught_only else ["alone"]
    ways = [*first, *(way for way in options.ways if way != "alone")]
    Path("runs").mkdir(exist_ok=True)
    out = Path(tempfile.mkdtemp(prefix="distilled-", dir="runs"))

    teacher = options.fitted or out / "teacher.safetensors"
    if not options.fitted:
        xcite("fit-head", options.teacher, options.pictures, teacher, "--engine", options.engine)
    validation = f"data.validation={options.pictures}/val"
    found: dict[str, list[float]] = {way: [] for way in ways}
    for seed in options.seeds:
        data = [f"data.train={options.pictures}/train", f"run.engine={options.engine}"]
        run = [*data, f"run.seed={seed}", *options.set]
        for way in ways:
            began, folder = time.monotonic(), out / f"{way}-{seed}"
            # a program shows no features
            asked = teacher if "distill.loss=cosine" in WAYS[way] else options.program or teacher
            taught = [*run, *WAYS[way], f"distill.teacher={asked}"] if WAYS[way] else run
            if way in IN_TWO_PARTS:
                accuracy = in_two_parts(options, folder, run, taught, validation)
            else:
                if way == "more":
                    taught += [f"data.train={options.unlabelled}", f"optim.epochs={options.before}"]
                    if options.more_views:
                        taught.append(f"distill.views={options.more_views}")
                if WAYS[way]:  # alpha is no matter of the answers
                    asked = way if way == "more" else WAYS[way][0].partition("=")[2]
                    cache = out / f"answers-{asked}-{seed}"
                    if not cache.exists():
                        xcite(
                            "teach",
                            options.recipe,
                            "--out",
                            cache,
                            *settings([*taught, validation]),
                        )
                    taught = [*taught, f"distill.cache={cache}"]
                accuracy = train(options.recipe, folder, [*taught, validation])
            found[way].append(accuracy)
            print(f"{way}, seed {seed}: {accuracy:.2f} % ({time.monotonic() - began:.0f} s)")

    print("\n| student | top-1, last epoch | mean | gain | standard error of the gain |")
    print("| --- | --- | ---: | ---: | ---: |")
    for way, values in found.items():
        each = ", ".join(f"{value:.2f}" for value in values)
        row = f"| {way} | {each} | {statistics.mean(values):.2f} % |"
        if way == "alone" or options.taught_only:
            print(f"{row} | |")
            continue
        gains = [a - b for a, b in zip(values, found["alone"], strict=True)]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if gains[1:] else float("nan")
        print(f"{row} {statistics.mean(gains):+.2f} | {error:.2f} |")


def in_two_parts(
    options: argparse.Namespace, folder: Path, run: list[str], taught: list[str], validation: str
) -> float:
    """First without labels, then with them and without the teacher."""
    told = [value.partition("=")[2] for value in run if value.startswith("optim.epochs=")]
    epochs = int(told[-1]) if told else epochs_of(options.recipe)
    before = options.before or epochs // 2
    after = options.after or epochs - before
    pictures = options.unlabelled or options.pictures / "train"
    first = folder.with_name(f"{folder.name}-before")
    alone = ["data.labels=false", "data.validation=null", f"data.train={pictures}"]
    warm = [f"optim.epochs={before}", "optim.warmup_epochs=0.5", "distill.views=null"]
    xcite("train", options.recipe, "--out", first, *settings([*taught, *alone, *warm]))
    rest = [*run, validation, f"optim.epochs={after}", "optim.warmup_epochs=0.5"]
    start = [f"init.weights={first}", "init.reset_head=true"]
    return train(options.recipe, folder, [*rest, *start])


def epochs_of(recipe: str) -> int:
    """What the recipe says itself."""
    from xcite import recipe as recipes

    return recipes.load(recipe).optim.epochs


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
