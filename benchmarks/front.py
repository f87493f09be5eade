"""Accuracy against speed on this machine: XCiT variants and what one might take instead.

    python benchmarks/front.py
    python benchmarks/front.py --peers resnet50:80.4:resnet50.onnx edgenext_small@256:81.1:edge.onnx
    python benchmarks/front.py --picture docs/front.png

Every model runs in the fastest of its runtimes and precisions here: OpenVINO in float32, and in
bfloat16 where the processor has instructions for it, ONNX Runtime in float32; TorchScript in
PyTorch. int8 is left out: what it costs in accuracy is not published. The ways of a model take
turns with one yardstick, nano_12_p16 at 224 px in OpenVINO, and a speed is the ratio to it times
what the yardstick did over the whole run, so that drift cancels out.

Accuracy is the published top-1 of ImageNet: the catalogue's for XCiT, what the command line says
for peers. XCiT's is known at 224 and 384 px; other sizes have a speed, and no place on the front.
Speed does not depend on the weights' values, which are drawn. Prints a Markdown table.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xcite import canonical
from xcite.errors import XciteError
from xcite.export import graph
from xcite.export.onnx_file import write_onnx
from xcite.processor import this_processor
from xcite.runtime.precision import native
from xcite.runtime.programs import open_program
from xcite.runtime.turns import by_turns
from xcite.variants import find
from xcite.weights.catalog import entries

SIZES = (160, 224, 288, 384)
MODELS = (
    *("xcit_nano_12_p16", "xcit_tiny_12_p16", "xcit_tiny_24_p16", "xcit_small_12_p16"),
    *("xcit_nano_12_p8", "xcit_tiny_12_p8", "xcit_small_12_p8"),
)
YARDSTICK = ("xcit_nano_12_p16", 224)


@dataclass(frozen=True)
class Point:
    """A model at a size, as it runs here.

    Attributes:
        top1: published, in percent; None where nothing is.
        way: runtime and precision.
        speed: images/s.
    """

    name: str
    size: int
    top1: float | None
    way: str = ""
    speed: float = 0.0

    @property
    def ours(self) -> bool:
        return self.name.startswith("xcit_")


# Measured on 2 cores of Zen 3 (AVX2 alone), OpenVINO float32, batch 8: an earlier run, whose peers
# were timm's models. Sizes and top-1 as they were given with it.
ZEN3 = [
    Point("xcit_small_12_p16", 224, 83.3, speed=16.8),
    Point("edgenext_small", 224, 81.6, speed=63.4),
    Point("xcit_tiny_12_p8", 224, 81.2, speed=18.2),
    Point("resnet50", 224, 80.4, speed=21.8),
    Point("deit_small", 224, 79.9, speed=18.1),
    Point("mobilenetv4_conv_medium", 224, 79.1, speed=101),
    Point("xcit_tiny_12_p16", 224, 78.6, speed=60.9),
    Point("efficientnet_b0", 224, 77.7, speed=117),
    Point("xcit_nano_12_p8", 224, 76.3, speed=38.0),
    Point("convnext_atto", 224, 75.7, speed=113),
    Point("mobilenetv4_conv_small", 224, 73.8, speed=412),
    Point("xcit_nano_12_p16", 224, 72.4, speed=119),
]


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in accuracy and speed at once, the fastest first."""
    best, found = 0.0, []
    known = [(point.speed, point.top1, point) for point in points if point.top1 is not None]
    for _, top1, point in sorted(known, key=lambda one: one[:2], reverse=True):
        if top1 > best:
            best = top1
            found.append(point)
    return found


def peer(text: str) -> tuple[Point, dict[str, Path]]:
    """``name[@pixels]:accuracy:path`` taken apart."""
    try:
        name, accuracy, path = text.split(":", 2)
        name, _, size = name.partition("@")
        point = Point(name, int(size or 224), float(accuracy))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not name:accuracy:path") from None
    if not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {path}")
    return point, {"f32": Path(path), "bf16": Path(path)}


def variants(models: Sequence[str], sizes: Sequence[int]) -> Iterator[Point]:
    """The models at every size, with the best top-1 that was published there."""
    for model in models:
        for size in sizes:
            known = [
                entry.top1
                for entry in entries()
                if (entry.architecture, entry.resolution) == (model, size) and entry.classes
            ]
            yield Point(model, size, max(known, default=None))


def written(point: Point, folder: Path) -> dict[str, Path]:
    """An XCiT's graphs with drawn weights as ONNX files, by precision."""
    architecture = find(point.name)
    weights = canonical.initial_weights(architecture, 0)
    size, files = (point.size, point.size), {}
    for precision in ("f32", "bf16"):
        files[precision] = folder / f"{point.name}_{point.size}_{precision}.onnx"
        proto = graph.build(weights, architecture, size=size, bf16=precision == "bf16")
        write_onnx(proto, files[precision])
    return files


def ways(
    files: dict[str, Path], size: int, threads: int
) -> Iterator[tuple[str, Callable[[np.ndarray], object]]]:
    """Every way to run a model here, by name; its files by precision."""
    path = files["f32"]
    if path.suffix in (".pt", ".pth", ".ts"):
        import torch

        torch.set_num_threads(threads)
        model = torch.jit.load(str(path), map_location="cpu").eval()

        def run(images: np.ndarray) -> object:
            with torch.inference_mode():
                return model(torch.from_numpy(images))

        yield "torch f32", run
        return
    for runtime, precision in (("openvino", "f32"), ("openvino", "bf16"), ("onnxruntime", "f32")):
        if not native(precision, this_processor()):
            continue
        if runtime == "onnxruntime" and path.suffix != ".onnx":
            continue
        program = open_program(
            files[precision],
            runtime=runtime,
            precision=precision,
            threads=threads,
            usual=(size, size),
        )
        yield f"{runtime} {precision}", program.run


def images(batch: int, size: int) -> np.ndarray:
    """Noise float32 (B, 3, H, W)."""
    shape = (batch, 3, size, size)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def measured(
    asked: Sequence[tuple[Point, dict[str, Path]]], yardstick: Path, options: argparse.Namespace
) -> list[Point]:
    """The points with their fastest way and its speed."""
    size = YARDSTICK[1]
    program = open_program(
        yardstick, runtime="openvino", threads=options.threads, usual=(size, size)
    )
    given = images(options.batch, size)
    of_yardstick, found = [], []
    for point, files in asked:
        batch = images(options.batch, point.size)
        names, works = [], [lambda: program.run(given)]
        for name, run in ways(files, point.size, options.threads):
            try:
                run(batch)
            except XciteError as error:  # such as a file made for another batch
                print(f"{point.name}: {name} is left out: {error}", file=sys.stderr, flush=True)
                continue
            names.append(name)
            works.append(lambda run=run, batch=batch: run(batch))
        clock = time.process_time if options.cpu_time else time.perf_counter
        times = by_turns(works, rounds=options.rounds, limit=options.limit, clock=clock)
        of_yardstick += times[0]
        own = [statistics.median(one) for one in times]
        best = min(range(1, len(own)), key=own.__getitem__)
        found.append(replace(point, way=names[best - 1], speed=own[0] / own[best]))
        print(
            f"{point.name}, {point.size} px: {found[-1].speed:.3f} of the yardstick",
            file=sys.stderr,
            flush=True,
        )
    rate = options.batch / statistics.median(of_yardstick)
    return [replace(point, speed=point.speed * rate) for point in found]


def table(points: Sequence[Point]) -> list[str]:
    """Markdown rows, the fastest first."""
    best = front(points)
    rows = ["| model | px | top-1, % | fastest in | images/s | on the front |"]
    rows.append("| --- | ---: | ---: | --- | ---: | --- |")
    for point in sorted(points, key=lambda one: -one.speed):
        known = "none published" if point.top1 is None else f"{point.top1:.1f}"
        there = "yes" if point in best else ""
        rows.append(
            f"| {point.name} | {point.size} | {known} | {point.way} | {point.speed:.1f} | {there} |"
        )
    return rows


def draw(points: Sequence[Point], here: str, picture: Path) -> None:
    """This machine and Zen 3 in two panels, the front as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, panels = pyplot.subplots(1, 2, figsize=(13, 6), layout="constrained", sharey=True)
    sides = {here: points, "2 cores of Zen 3, OpenVINO float32, batch 8": ZEN3}
    for panel, (title, shown) in zip(panels, sides.items(), strict=True):
        known = [point for point in shown if point.top1 is not None]
        best = front(known)
        panel.plot([p.speed for p in best], [p.top1 for p in best], color="0.6", lw=1, zorder=1)
        for ours, colour, marker in ((True, "tab:red", "o"), (False, "tab:blue", "s")):
            group = [point for point in known if point.ours == ours]
            label = "XCiT" if ours else "others"
            panel.scatter(
                [p.speed for p in group],
                [p.top1 for p in group],
                c=[colour if p in best else "none" for p in group],
                edgecolors=colour,
                marker=marker,
                label=f"{label} (filled: on the front)",
                zorder=2,
            )
        panel.set(xscale="log", xlabel="images/s", title=title)
        panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        panel.xaxis.set_minor_formatter(ticker.NullFormatter())
        panel.margins(x=0.2, y=0.08)
        panel.grid(True, alpha=0.25)
        panel.legend(loc="lower left", fontsize=8)
    panels[0].set_ylabel("published ImageNet top-1, %")
    figure.draw_without_rendering()  # the panels get their places, which labels go by
    for panel, shown in zip(panels, sides.values(), strict=True):
        label_points(panel, [point for point in shown if point.top1 is not None])
    figure.savefig(picture, dpi=110)


def label_points(panel: Any, points: Sequence[Point]) -> None:
    """Names beside their points, each where it covers least of the others and of the points."""
    from matplotlib.transforms import Bbox

    places = [panel.transData.transform((point.speed, point.top1)) for point in points]
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in places]
    for point in points:
        name = point.name.removeprefix("xcit_").replace("mobilenetv4_conv", "mnv4")
        tried = []
        for side, x in (("left", 6), ("right", -6)):
            for y in (0, 7, -7, 13, -13):
                label = panel.annotate(
                    f"{name} {point.size}",
                    (point.speed, point.top1),
                    xytext=(x, y),
                    textcoords="offset points",
                    ha=side,
                    va="center",
                    fontsize=7,
                )
                box = label.get_window_extent()
                covers = sum(box.overlaps(other) for other in taken) + (box.x1 > panel.bbox.x1)
                tried.append((covers, len(tried), label, box))
        _, _, kept, box = min(tried, key=lambda one: one[:2])
        for _, _, label, _ in tried:
            if label is not kept:
                label.remove()
        taken.append(box)


def main() -> None:
    """Measure, print the table, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--peers", nargs="*", type=peer, default=[], metavar="NAME:ACCURACY:PATH")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--limit", type=float, default=12.0, help="seconds for a model at a size")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count processor time, not the clock's: for a busy machine, with --threads 1",
    )
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asked = [
            (point, written(point, Path(folder)))
            for point in variants(options.models, options.sizes)
        ]
        yardstick = written(Point(*YARDSTICK, None), Path(folder))["f32"]
        points = measured([*asked, *options.peers], yardstick, options)
    print("\n".join(table(points)))
    if options.picture:
        processor = this_processor()
        cores = "1 core" if options.threads == 1 else f"{options.threads} cores"
        here = f"{cores} of {processor.name}, {processor.instruction_set}, batch {options.batch}"
        draw(points, f"{here},\neach model in its fastest way", options.picture)


if __name__ == "__main__":
    main()
