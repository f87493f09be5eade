"""Training and inference on a GPU: images/s, memory, and the share of the card's peak.

    python benchmarks/gpu.py [--reference xcit.py] [--engine paddle] [--batch 128]
    python benchmarks/gpu.py --device cpu --models xcit_nano_12_p16 --batch 2 --rounds 1

The second line is a dry run: it shows on any machine that the script works, and measures nothing.

--reference is a Python file that makes a PyTorch model, see benchmarks/train_step.py; it runs as a
program of yours would, and nothing but the file you name is executed. "plain" is Xcite's own model
of plain operators. Both sides live in one process, on the card at once and with one batch size, and
their turns alternate, so that clocks and heat meet both.

Without --batch the batch is doubled until memory is out or --largest is reached; the last that fits
both sides is kept. A --batch that does not fit is halved.

Prints a Markdown table of medians and writes PREFIX-train.csv and PREFIX-infer.csv. Their first
columns are those of timm's result files: step times in milliseconds, parameters in millions;
infer_macts stays empty, for `xcite.cost` does not count what timm counts there.
"""

import argparse
import copy
import csv
import gc
import importlib
import io
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from train_step import PLAIN, load_reference

from xcite.canonical import parameter_count
from xcite.cost import multiply_adds
from xcite.data.batch import Batch
from xcite.data.mixing import draw, soft_targets
from xcite.engines import NAMES, create_engine, engine_package
from xcite.engines.pixels import model_input
from xcite.errors import XciteError
from xcite.evaluation.throughput import random_batch, reset_resident_peak, resident_peak
from xcite.installed import versions
from xcite.machine import usable_cores
from xcite.preprocessing import Preprocessing
from xcite.processor import this_processor
from xcite.randomness import generator
from xcite.recipe_sections import AugmentRecipe, DistillRecipe, OptimRecipe
from xcite.runtime.turns import by_turns
from xcite.variants import find
from xcite.whole_files import write_text

LEARNING_RATE, WEIGHT_DECAY, EMA = 1e-4, 0.05, 0.9998
DRY_RUN = "python benchmarks/gpu.py --device cpu --models xcit_nano_12_p16 --batch 2 --rounds 1"
# Published by timm, images/s: training with amp on an RTX 3090, compiled inference on an RTX 4090.
CARDS = {"train": "RTX 3090, amp", "infer": "RTX 4090, compiled"}
ANCHORS = {
    "xcit_nano_12_p16": {"train": 1970, "infer": 22040},
    "xcit_nano_12_p8": {"train": 555, "infer": 5869},
    "xcit_small_12_p16": {"train": 598, "infer": 6374},
    "xcit_small_12_p8": {"train": 169, "infer": 1711},
    "xcit_large_24_p8": {"train": 33.7, "infer": 332},
}
TABLE = """\
| model | work | precision | mode | batch | side | images/s | ms a step | memory, MiB \
| of the peak | to the reference | anchor |
| --- | --- | --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |"""
LEGEND = """
- Xcite trains: the product's step. uint8 pictures are sent a step ahead and mixed on the device;
  soft cross entropy, backward, gradient norm, fused AdamW, moving average of all weights.
- the reference trains: the same pictures lie normalised and mixed on the device; soft cross
  entropy, backward, PyTorch's fused AdamW, the same average by foreach.
- infer: float32 pictures lie on the device, for both. bf16 is autocast.
- memory: peak of a step, weights included, less what was held before that side was built; on a CPU
  the resident peak of the whole process.
- of the peak: GMACs of the usual form, times 3 for training, of the bf16 products measured here.
- anchor: timm's published images/s on another card."""


@dataclass(frozen=True)
class Case:
    """One comparison; ``work`` is "train" or "infer", ``mode`` "eager" or "compiled"."""

    model: str
    work: str
    precision: str
    mode: str
    batch: int
    size: int
    gpu: bool

    def __str__(self) -> str:
        named = f"{self.model}, {self.work}, {self.precision}, {self.mode}"
        return f"{named}, batch {self.batch}" if self.batch else named


@dataclass(frozen=True)
class Side:
    """A model at work; ``step`` only queues on a GPU, ``memory`` is in MiB (see `LEGEND`)."""

    name: str
    step: Callable[[], object]
    wait: Callable[[], object]
    parameters: int
    memory: float
    seconds: float


def cuda_of(framework: str) -> Any:
    """``torch.cuda``, or Paddle's module that has nearly the same functions."""
    engine_package(framework)  # missing, or imported without what Paddle says then
    return importlib.import_module("torch.cuda" if framework == "torch" else "paddle.device.cuda")


def held_memory(cuda: Any | None) -> float:
    """MiB that are held now, from where the peak is counted again; None: of the processor's."""
    if cuda is None:
        reset_resident_peak()
        return 0.0
    reset = getattr(cuda, "reset_peak_memory_stats", None) or cuda.reset_max_memory_allocated
    reset()
    return cuda.memory_allocated() / 2**20


def peak_memory(cuda: Any | None) -> float:
    """MiB at most since `held_memory`."""
    return cuda.max_memory_allocated() / 2**20 if cuda else resident_peak() or float("nan")


def free() -> None:
    """Give back what is no longer used, and forget compiled code, which is for one batch size."""
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].compiler.reset()
    for name in ("torch", "paddle"):
        if name in sys.modules and cuda_of(name).device_count():
            cuda_of(name).empty_cache()


def out_of_memory(error: Exception) -> bool:
    """Whether memory did not suffice; NumPy and Paddle have a class for it, PyTorch two or none."""
    signs = ("out of memory", "allocate memory", "alloc_failed")
    told = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in told for sign in signs)


def unless_out_of_memory(work: Callable[[], Any]) -> Any:
    """What ``work`` returns; None where memory did not suffice."""
    result = None
    try:
        result = work()
    except Exception as error:
        if not out_of_memory(error):
            raise
    free()  # here no traceback holds tensors any more
    return result


def pictures(case: Case) -> tuple[Batch, Preprocessing]:
    """uint8 noise with soft targets, mixed as the default recipe says."""
    architecture, size = find(case.model), case.size
    batch = random_batch(architecture, case.batch, size, size)
    mixing = draw(generator(0, "gpu"), case.batch, size, size, AugmentRecipe())
    targets = soft_targets(batch.labels, architecture.num_classes, 0.1, mixing)
    channels = architecture.in_chans
    preprocessing = Preprocessing(size=(size, size), mean=(0.5,) * channels, std=(0.25,) * channels)
    return replace(batch, mixing=mixing, targets=targets), preprocessing


def ours(case: Case, framework: str) -> tuple[Callable[[], object], int]:
    """A step of the product's engine, and its number of parameters."""
    architecture = find(case.model)
    engine = create_engine(
        framework,
        architecture,
        precision=case.precision,
        compile=case.mode == "compiled",
        device="gpu" if case.gpu else "cpu",
    )
    count = parameter_count(architecture)
    batch, preprocessing = pictures(case)
    if case.work == "infer":
        images = engine.tensor(model_input(batch, preprocessing))
        return lambda: engine.forward(images), count
    optim = OptimRecipe(batch=case.batch, weight_decay=WEIGHT_DECAY, ema=EMA)
    engine.start_training(optim, DistillRecipe(), preprocessing)
    ahead = [engine.stage(batch)]

    def train() -> object:
        ahead.append(engine.stage(batch))
        staged = [ahead.pop(0)]
        return engine.train_step(staged, learning_rate=LEARNING_RATE, paths=[None], teacher=[None])

    return train, count


def reference(case: Case, path: str) -> tuple[Callable[[], object], int]:
    """The same of the reference, in plain PyTorch."""
    import torch

    device = torch.device("cuda" if case.gpu else "cpu")
    model = load_reference(path, "torch", case.model).to(device)
    average = copy.deepcopy(model) if case.work == "train" else None
    call = torch.compile(model) if case.mode == "compiled" else model
    count = sum(parameter.numel() for parameter in model.parameters())
    batch, preprocessing = pictures(case)
    arrays = model_input(batch, preprocessing), batch.targets
    images, targets = (torch.from_numpy(array).to(device) for array in arrays)

    def logits() -> Any:
        with torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bf16"):
            output = call(images)
        return output[0] if isinstance(output, tuple) else output  # the official one trains on two

    def infer() -> None:
        with torch.inference_mode():
            logits()

    if average is None:
        model.eval()
        return infer, count
    model.train()
    states = average.state_dict(), model.state_dict()
    averages, weights = ([t for t in s.values() if t.is_floating_point()] for s in states)
    adamw = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )

    def train() -> None:
        loss = -(targets * logits().float().log_softmax(-1)).sum(-1).mean()
        loss.backward()
        adamw.step()
        adamw.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - EMA)

    return train, count


def side(case: Case, name: str, framework: str, make: Callable[..., Any], of: str) -> Side:
    """A side after two steps: it is compiled and has moments."""
    cuda = cuda_of(framework) if case.gpu else None
    wait = cuda.synchronize if cuda else lambda: None
    held = held_memory(cuda)
    step, parameters = make(case, of)
    for _ in range(2):
        held_memory(cuda)  # the first step's peak may be the compiler's
        began = time.perf_counter()
        step()
        wait()
    seconds = time.perf_counter() - began
    return Side(name, step, wait, parameters, peak_memory(cuda) - held, seconds)


def sides(case: Case, options: argparse.Namespace) -> list[Side]:
    """Ours, and the reference if there is one and it can do this."""
    found = [side(case, f"Xcite, {options.engine}", options.engine, ours, options.engine)]
    if options.reference:
        try:
            found.append(side(case, "reference", "torch", reference, options.reference))
        except Exception as error:
            if out_of_memory(error):
                raise
            leave_out(f"{case}, the reference", error)
    return found


def leave_out(what: object, error: Exception) -> None:
    """Say it in a line: hours of other cases shall not be lost."""
    told = f"{type(error).__name__}: {error}".splitlines()[0]
    print(f"{what}: left out: {told}", file=sys.stderr, flush=True)


def measured(case: Case, options: argparse.Namespace) -> list[tuple[Side, float]]:
    """The sides with their seconds of a step: medians of turns that alternate."""
    both = sides(case, options)
    steps = [max(1, round(options.seconds / one.seconds)) for one in both]

    def turn(one: Side, count: int) -> None:
        for _ in range(count):
            one.step()
        one.wait()

    turns = [lambda pair=pair: turn(*pair) for pair in zip(both, steps, strict=True)]
    times = map(statistics.median, by_turns(turns, rounds=options.rounds))
    found = zip(both, times, steps, strict=True)
    return [(one, seconds / count) for one, seconds, count in found]


def batch_for(case: Case, options: argparse.Namespace) -> int:
    """The largest batch that both sides can run, by doubling."""
    batch = min(8, options.largest)
    while 2 * batch <= options.largest:
        larger = replace(case, batch=2 * batch)
        if unless_out_of_memory(lambda larger=larger: len(sides(larger, options))) is None:
            break
        batch *= 2
    return batch


def rows(
    case: Case, options: argparse.Namespace, peak: float | None, machine: str
) -> list[dict[str, Any]]:
    """One for each side, in the columns of the file; the batch is halved until it fits.

    Raises:
        XciteError: not a single picture fits.
    """
    found = None
    while found is None and case.batch:
        found = unless_out_of_memory(lambda case=case: measured(case, options))
        if found is None:
            print(f"{case}: out of memory, so the batch is halved", file=sys.stderr, flush=True)
            case = replace(case, batch=case.batch // 2)
    if found is None:
        raise XciteError("a single picture is out of memory")
    macs = multiply_adds(find(case.model), case.size, case.size)
    work, operations = case.work, 2 * macs * (3 if case.work == "train" else 1)
    counts = {"infer_gmacs": round(macs / 1e9, 2), "infer_macts": ""} if work == "infer" else {}
    return [
        {
            "model": case.model,
            f"{work}_samples_per_sec": round(case.batch / seconds, 2),
            f"{work}_step_time": round(1000 * seconds, 3),
            f"{work}_batch_size": case.batch,
            f"{work}_img_size": case.size,
            **counts,
            "param_count": round(one.parameters / 1e6, 2),
            "side": one.name,
            "precision": case.precision,
            "mode": case.mode,
            "peak_memory_mib": round(one.memory, 1),
            "bf16_peak_fraction": f"{case.batch / seconds * operations / peak:.4g}" if peak else "",
            "to_reference": f"{found[1][1] / seconds:.3g}" if len(found) > 1 else "",
            "machine": machine,
        }
        for one, seconds in found
    ]


def shown(row: dict[str, Any], work: str) -> str:
    """The row in Markdown."""
    anchor, fraction = ANCHORS.get(row["model"], {}).get(work), row["bf16_peak_fraction"]
    cells = [
        *(row["model"], work, row["precision"], row["mode"], row[f"{work}_batch_size"]),
        *(row["side"], row[f"{work}_samples_per_sec"], row[f"{work}_step_time"]),
        *(row["peak_memory_mib"], f"{float(fraction):.1%}" if fraction else "unknown"),
        *(row["to_reference"], f"{anchor} ({CARDS[work]})" if anchor else ""),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def bf16_peak(engine: str, gpu: bool) -> float | None:
    """Operations/s of large products at best; None: no such product (Paddle on a CPU)."""
    if engine == "paddle" and not gpu:
        return None
    framework = importlib.import_module(engine)
    size, repeats = (8192, 20) if gpu else (256, 2)
    matrix = framework.randn([size, size]).astype("bfloat16") if engine == "paddle" else None
    if matrix is None:
        matrix = framework.randn(size, size, device="cuda" if gpu else "cpu").bfloat16()
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        for _ in range(repeats):
            matrix @ matrix
        if gpu:
            cuda_of(engine).synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 * repeats / best


def described(engine: str, gpu: bool) -> str:
    """Device, driver, CUDA, versions and processor, in a line."""
    known = versions()
    parts = [f"{name} {known[name]}" for name in ("xcite", "python", *NAMES) if name in known]
    processor = this_processor()
    parts.append(f"{usable_cores()} cores of {processor.name}, {processor.instruction_set}")
    if gpu:
        version = importlib.import_module(engine).version
        toolkit = version.cuda if engine == "torch" else version.cuda()
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            driver = ""
        told = (driver.split() or ["unknown"])[0]
        parts = [cuda_of(engine).get_device_name(), f"driver {told}", f"CUDA {toolkit}", *parts]
    return ", ".join(parts)


def compare(options: argparse.Namespace, peak: float | None, machine: str) -> bool:
    """Print and write all that is asked for, row by row; whether nothing went wrong."""
    fine, gpu = True, options.device == "gpu"
    kept: dict[str, list[dict[str, Any]]] = {"train": [], "infer": []}
    for asked in itertools.product(options.models, options.work, options.precision):
        batch, work = options.batch, asked[1]
        for mode in options.modes:
            case = Case(*asked, mode, batch or 0, options.size, gpu)
            free()
            try:
                # found eager, it serves compiled, too
                batch = batch or batch_for(replace(case, mode="eager"), options)
                found = rows(replace(case, batch=batch), options, peak, machine)
            except Exception as error:
                fine = fine and isinstance(error, XciteError)
                leave_out(case, error)
                continue
            fine = fine and len(found) == (2 if options.reference else 1)
            kept[work] += found
            print("\n".join(shown(row, work) for row in found), flush=True)
            text = io.StringIO()
            writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept[work])
            write_text(f"{options.csv}-{work}.csv", text.getvalue())
    return fine


def check(options: argparse.Namespace) -> None:
    """Refuse what cannot be, and fill in what follows from the device.

    Raises:
        XciteError: no GPU, no such engine or file, or an unknown model.
    """
    for model in options.models:
        find(model)
    if options.reference not in (None, PLAIN) and not Path(options.reference).is_file():
        raise XciteError(f"there is no file {options.reference}")
    gpu = options.device == "gpu"
    if gpu and not cuda_of(options.engine).device_count():
        raise XciteError(f"{options.engine} finds no GPU here; a dry run without is: {DRY_RUN}")
    bf16 = gpu or this_processor().native_bf16
    options.precision = options.precision or ["float32", "bf16"][: 2 if bf16 else 1]
    options.modes = options.modes or ["eager", "compiled"][: 2 if gpu else 1]
    options.largest = options.largest or (256 if gpu else 8)
    options.seconds = 2.0 if gpu else 0.0  # of a turn; at least a step


def main() -> None:
    """Measure, print the table, write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=NAMES, default="torch")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--models", nargs="+", default=list(ANCHORS))
    parser.add_argument("--work", nargs="+", choices=list(CARDS), default=list(CARDS))
    parser.add_argument("--precision", nargs="+", choices=("float32", "bf16"))
    parser.add_argument("--modes", nargs="+", choices=("eager", "compiled"))
    parser.add_argument("--reference", metavar="FILE.py", help="is executed, see above")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--largest", type=int, help="batch that is tried; on a GPU 256")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--csv", default="gpu", metavar="PREFIX")
    options = parser.parse_args()
    try:
        check(options)
    except XciteError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    gpu = options.device == "gpu"
    peak, machine = bf16_peak(options.engine, gpu), described(options.engine, gpu)
    print(TABLE, flush=True)
    fine = compare(options, peak, machine)
    told = f"{peak / 1e12:.3g} TFLOP/s" if peak else "unknown"
    print(f"\nOn {machine}; bf16 peak {told}.\n{LEGEND}")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
