"""Training step and forward pass against a plain transcription of the official model.

    python benchmarks/train_step.py --engine torch
    python benchmarks/train_step.py --engine torch --models xcit_nano_12_p8 --precision bf16
    python benchmarks/train_step.py --engine torch --models xcit_nano_12_p8 --reference theirs.py

The same threads serve both models, weights do not matter for time, and their turns alternate, so
that whatever else the machine does meets both. Both live in one process; with --own-processes each
lives in its own, as it would at its user's: the reference then has the framework's own settings,
not Xcite's of the C library's allocator, and neither finds its memory scattered by the other's
tensors. A training step is forward,
cross entropy with soft targets, backward and AdamW, on pictures already in memory. The ratio is
the reference's median time over ours. Peak memory is that of one training step over what is
resident before it (weights, moments, libraries), each side in a process of its own.

The reference is Xcite's own model of plain operators, which computes what the official code does,
operation by operation; with --reference uncompiled Xcite's on Paddle without compiled operators;
with --reference FILE.py any Python file, which runs as a program of yours would.
The file defines `build(architecture)`, a class `XCiT` that takes the architecture
(`xcite.variants.XCiTArchitecture`: patch_size, embed_dim, depth, num_heads, num_classes, ...), or
functions with the models' names that take num_classes, as a copy of the official xcit.py has them.
The module gives `model(images) -> logits`. For timm:

    import timm
    def build(architecture):
        return timm.create_model("xcit_nano_12_p8_224", num_classes=architecture.num_classes)

Prints a Markdown table.
"""

import argparse
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from xcite.choices import default_choices
from xcite.engines.allocation import keep_freed_memory
from xcite.evaluation.throughput import reset_resident_peak, resident_peak
from xcite.recipe_sections import OptimRecipe
from xcite.variants import Architecture, find

THREADS = len(os.sched_getaffinity(0))
LEARNING_RATE = 1e-4
PLAIN = "plain"
UNCOMPILED = "uncompiled"


@dataclass(frozen=True)
class Case:
    """One comparison; ``repeats`` turns of each side after one to warm up."""

    model: str
    batch: int
    size: int = 224
    precision: str = "float32"
    work: tuple[str, ...] = ("train",)
    repeats: int = 7


BOTH = ("train", "forward")
CASES = {
    "torch": [
        Case("xcit_nano_12_p8", 16, work=BOTH, repeats=9),
        Case("xcit_nano_12_p8", 16, precision="bf16", work=BOTH, repeats=9),
        Case("xcit_small_12_p8", 4),
        Case("xcit_small_12_p8", 4, precision="bf16"),
        Case("xcit_tiny_12_p8", 8),
        Case("xcit_tiny_24_p8", 4, repeats=5),
        Case("xcit_small_24_p8", 2, repeats=5),
        Case("xcit_medium_24_p8", 2, repeats=3),
        Case("xcit_large_24_p8", 1, repeats=3),
        Case("xcit_nano_12_p16", 16, repeats=15),
        Case("xcit_tiny_12_p16", 16, repeats=15),
        Case("xcit_tiny_24_p16", 8, repeats=15),
        Case("xcit_small_12_p16", 8, repeats=11),
        Case("xcit_small_12_p16", 8, precision="bf16", repeats=11),
        Case("xcit_small_24_p16", 4, repeats=7),
        Case("xcit_medium_24_p16", 4, repeats=5),
        Case("xcit_large_24_p16", 2, repeats=5),
    ],
    "paddle": [
        Case("xcit_nano_12_p8", 16, work=BOTH, repeats=5),
        Case("xcit_small_12_p16", 4, work=BOTH, repeats=5),
    ],
}
MEMORY = Case("xcit_nano_12_p8", 1, 448)


def load_reference(path: str, engine: str, name: str) -> Any:
    """The module that the file makes of the model called ``name``, or that of plain operators."""
    architecture = find(name)
    if path in (PLAIN, UNCOMPILED):
        return ours(engine, architecture, path)
    spec = importlib.util.spec_from_file_location("reference_model", path)
    if spec is None or spec.loader is None:
        sys.exit(f"{path} is not a Python file")
    file = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = file  # where timm's register_model looks for it
    spec.loader.exec_module(file)
    if not hasattr(file, "build") and hasattr(file, name):
        return getattr(file, name)(num_classes=architecture.num_classes)
    make = getattr(file, "build", None) or getattr(file, "XCiT", None)
    if make is None:
        sys.exit(f"{path} defines none of build(architecture), {name}(num_classes=...) and XCiT")
    return make(architecture)


def ours(engine: str, architecture: Architecture, kind: str = "fast") -> Any:
    """The product's model, with PyTorch's or Paddle's own initial values."""
    if engine == "torch":
        from xcite.engines.torch import build
    else:
        from xcite.engines.paddle import build
    if kind == UNCOMPILED:
        choices = default_choices(engine, compiled=False)
        return build(architecture, choices=choices, seed=None)
    return build(architecture, operators=kind, seed=None)


def torch_side(model: Any, case: Case, product: bool) -> dict[str, Callable[[], None]]:
    """What can be timed on PyTorch: "train" and "forward"."""
    import torch

    torch.set_num_threads(THREADS)
    images, targets = (torch.from_numpy(a) for a in data(model, case))

    def logits() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bf16"):
            output = model(images)
        return output[0] if isinstance(output, tuple) else output  # the official one trains on two

    if product:
        from xcite.engines.torch.optimizer import AdamW, named_parameters

        adamw = AdamW(named_parameters(model), OptimRecipe())

        def update() -> None:
            adamw.step(LEARNING_RATE, 0.0)
            adamw.clear_gradients()
    else:
        plain = torch.optim.AdamW(model.parameters(), LEARNING_RATE)

        def update() -> None:
            plain.step()
            plain.zero_grad()

    def train() -> None:
        model.train()
        loss = -(targets * logits().float().log_softmax(-1)).sum(-1).mean()
        loss.backward()
        update()

    def forward() -> None:
        model.eval()
        with torch.inference_mode():
            logits()

    return {"train": train, "forward": forward}


def paddle_side(model: Any, case: Case, product: bool) -> dict[str, Callable[[], None]]:
    """What can be timed on Paddle: "train" and "forward"."""
    import paddle

    if case.precision != "float32":
        sys.exit("Paddle has no bf16 training on a CPU")
    paddle.base.core.set_num_threads(THREADS)
    images, targets = (paddle.to_tensor(a) for a in data(model, case))
    if product:
        from xcite.engines.paddle.optimizer import AdamW, named_parameters

        adamw = AdamW(named_parameters(model), OptimRecipe())

        def update() -> None:
            adamw.step(LEARNING_RATE, 0.0)
            adamw.clear_gradients()
    else:
        plain = paddle.optimizer.AdamW(LEARNING_RATE, parameters=model.parameters())

        def update() -> None:
            plain.step()
            plain.clear_grad()

    def train() -> None:
        model.train()
        log_softmax = paddle.nn.functional.log_softmax(model(images))
        loss = -(targets * log_softmax).sum(-1).mean()
        loss.backward()
        update()

    def forward() -> None:
        model.eval()
        with paddle.no_grad():
            model(images)

    return {"train": train, "forward": forward}


SIDES = {"torch": torch_side, "paddle": paddle_side}


def data(model: Any, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 (B, 3, size, size) and targets (B, K) whose rows sum to one."""
    random = np.random.default_rng(0)
    images = random.standard_normal((case.batch, 3, case.size, case.size), np.float32)
    targets = random.random((case.batch, find(case.model).num_classes), np.float32)
    return images, targets / targets.sum(1, keepdims=True)


def side(engine: str, case: Case, reference: str | None) -> dict[str, Callable[[], None]]:
    """What can be timed of the reference, or of the product where there is none."""
    if reference is None:
        return SIDES[engine](ours(engine, find(case.model)), case, True)
    model = load_reference(reference, engine, case.model)
    return SIDES[engine](model, case, reference == UNCOMPILED)


def timer(
    work: dict[str, Callable[[], None]], clock: Callable[[], float] = time.perf_counter
) -> Callable[[str], float]:
    """Seconds of one turn of the named work."""

    def seconds(name: str) -> float:
        start = clock()
        work[name]()
        return clock() - start

    return seconds


@contextmanager
def child(engine: str, case: Case, reference: str | None) -> Iterator[Callable[[str], float]]:
    """The same from a process of its own."""
    call = json.dumps([engine, asdict(case), reference])
    command = [sys.executable, __file__, "--side-of", call]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout

        def seconds(name: str) -> float:
            print(name, file=process.stdin, flush=True)
            answer = process.stdout.readline()
            return float(answer) if answer else sys.exit("a side ended with an error, see above")

        yield seconds
        process.stdin.close()


def serve_side(call: str) -> None:
    """Answer every kind of work named on standard input with its seconds."""
    engine, case, path = json.loads(call)
    if path is None:
        keep_freed_memory()
    seconds = timer(side(engine, Case(**case), path))
    for line in sys.stdin:
        print(seconds(line.strip()), flush=True)


def compare(
    engine: str, case: Case, reference: str, own_processes: bool, processor_time: bool = False
) -> None:
    """Print one row for each kind of work."""
    if own_processes:
        with child(engine, case, None) as product, child(engine, case, reference) as plain:
            alternate(case, plain, product)
        return
    # Ours first: importing an engine may tune its framework, and both sides shall have that.
    clock = time.process_time if processor_time else time.perf_counter
    product, plain = (timer(side(engine, case, path), clock) for path in (None, reference))
    alternate(case, plain, product)


def alternate(case: Case, plain: Callable[[str], float], product: Callable[[str], float]) -> None:
    """Let both sides take turns and print the rows."""
    for work in case.work:
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(case.repeats + 1):
            for ours_, turn_of in ((False, plain), (True, product)):
                taken = turn_of(work)
                if turn:
                    seconds[ours_].append(taken)
        ratio = statistics.median(seconds[False]) / statistics.median(seconds[True])
        name = {"train": "training step", "forward": "forward"}[work]
        print(
            f"| {case.model} | {case.size} | {case.batch} | {case.precision} | {name} "
            f"| {shown(seconds[False])} | {shown(seconds[True])} | {ratio:.2f} |",
            flush=True,
        )


def shown(seconds: list[float]) -> str:
    """Median and quartiles."""
    low, median, high = np.percentile(seconds, [25, 50, 75])
    return f"{median:.3f} s ({low:.3f} to {high:.3f})"


def step_memory(engine: str, case: Case, reference: str | None) -> float:
    """MiB of one training step over what was resident before it; runs in a child process."""
    product = reference in (None, UNCOMPILED)
    model = (
        load_reference(reference, engine, case.model)
        if reference
        else ours(engine, find(case.model))
    )
    # A small step first: libraries are loaded, moments exist.
    SIDES[engine](model, replace(case, batch=2, size=64), product)["train"]()
    train = SIDES[engine](model, case, product)["train"]
    gc.collect()
    reset_resident_peak()
    before = resident_peak()
    train()
    after = resident_peak()
    if before is None or after is None:
        sys.exit("this system does not tell a process's peak memory")
    return after - before


def compare_memory(engine: str, case: Case, reference: str) -> None:
    """Print one row; every side in a child, where freed memory goes back to the system at once."""
    sides = []
    for path in (reference, None):
        call = [engine, case.model, case.batch, case.size, path]
        done = subprocess.run(
            [sys.executable, __file__, "--memory-of", json.dumps(call)],
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        sides.append(float(done.stdout.split()[-1]))
    print(
        f"| {case.model} | {case.size} | {case.batch} | {case.precision} | training step, memory "
        f"| {sides[0]:.0f} MiB | {sides[1]:.0f} MiB | {sides[1] / sides[0]:.2f} of it |",
        flush=True,
    )


def main() -> None:
    """Compare the engine's cases, or the one described by the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=("torch", "paddle"), default="torch")
    parser.add_argument("--models", nargs="+", help="only these (the others' options are defaults)")
    parser.add_argument("--precision", nargs="+", choices=("float32", "bf16"))
    parser.add_argument("--batch", type=int)
    parser.add_argument("--size", type=int)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--reference", default=PLAIN, help="plain, uncompiled or a file, see above")
    parser.add_argument("--own-processes", action="store_true", help="see above")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="seconds of all threads, which others on the machine disturb less; one process alone",
    )
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--side-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.own_processes and options.processor_time:
        parser.error("--processor-time is that of one process: leave --own-processes out")
    if options.processor_time:  # threads that wait shall not count; read when a framework is loaded
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    if options.memory_of:
        engine, model, batch, size, path = json.loads(options.memory_of)
        print(step_memory(engine, Case(model, batch, size), path))
        return
    if options.side_of:
        serve_side(options.side_of)
        return
    keep_freed_memory()  # as the product's engines do; here it serves both sides
    cases = CASES[options.engine]
    if options.models:
        precisions = options.precision or ["float32"]
        cases = [
            Case(model, options.batch or 16, precision=precision, work=BOTH)
            for model in options.models
            for precision in precisions
        ]
    elif options.precision:
        cases = [case for case in cases if case.precision in options.precision]
    chosen = {name: getattr(options, name) for name in ("batch", "size", "repeats")}
    chosen = {name: value for name, value in chosen.items() if value}
    print("| model | px | batch | precision | work | reference | Xcite | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for case in cases:
        how = (options.own_processes, options.processor_time)
        compare(options.engine, replace(case, **chosen), options.reference, *how)
        gc.collect()
    memory = replace(MEMORY, model=options.models[0]) if options.models else MEMORY
    compare_memory(options.engine, memory, options.reference)


if __name__ == "__main__":
    main()
