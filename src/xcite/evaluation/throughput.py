"""How fast, and with how much memory, an engine works on this machine."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from xcite.cost import multiply_adds
from xcite.data.batch import Batch
from xcite.engines import create_engine, engine_package
from xcite.engines.attention_form import uses_covariance
from xcite.engines.interface import Engine
from xcite.engines.pixels import model_input
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.randomness import drop_path_scales, generator
from xcite.recipe_sections import DistillRecipe, OptimRecipe
from xcite.variants import Architecture, XCiTArchitecture


@dataclass(frozen=True)
class Measurement:
    """What was measured; images/s over the repetitions, memory in MiB.

    Attributes:
        peak_memory: highest resident memory while measuring less that before the model was built;
            None where the system does not say.
        gmacs: multiply-adds per image (forward) in the form of attention that ran.
        peak_fraction: multiply-adds done per second (a training step counts three forwards)
            divided by those of large linear maps of this engine in this precision (and not
            compiled), measured just after.
    """

    seconds: list[float]
    images_per_second: tuple[float, float, float]
    peak_memory: float | None
    gmacs: float
    matrix_product_gmacs: float
    peak_fraction: float

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def resident_peak() -> float | None:
    """Highest resident memory since `reset_resident_peak` in MiB; None where unknown."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    line = next((line for line in status.splitlines() if line.startswith("VmHWM")), None)
    return int(line.split()[1]) / 1024 if line else None


def reset_resident_peak() -> None:
    """Let the peak start from what is resident now (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def matrix_product_peak(
    engine: str, *, precision: str, operators: str, size: int = 2048, repeats: int = 5
) -> float:
    """Multiply-adds per second (in 1e9) of the engine's best of a few large linear maps."""
    linear_map = engine_package(engine).linear_map
    random = generator(0, "matrix product")
    x, weight = random.random((2, size, size), np.float32)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        linear_map(x, weight, precision=precision, operators=operators)
        best = min(best, time.perf_counter() - start)
    return size**3 / best / 1e9


def random_batch(architecture: Architecture, batch: int, height: int, width: int) -> Batch:
    """A training batch of noise with soft targets."""
    random = generator(0, "benchmark")
    classes = max(architecture.num_classes, 1)
    labels = random.integers(0, classes, batch)
    return Batch(
        pictures=random.integers(0, 256, (batch, height, width, architecture.in_chans), np.uint8),
        labels=labels,
        views=np.stack([np.arange(batch), np.zeros(batch, np.int64)], axis=1),
        targets=np.eye(classes, dtype=np.float32)[labels],
    )


def work_of(
    runner: Engine, architecture: Architecture, *, batch: int, height: int, width: int, train: bool
) -> Callable[[], object]:
    """A call that makes one training step or forward pass of the same random pictures."""
    channels = architecture.in_chans
    preprocessing = Preprocessing(
        size=(height, width), mean=(0.5,) * channels, std=(0.25,) * channels
    )
    pictures = random_batch(architecture, batch, height, width)
    if not train:
        images = model_input(pictures, preprocessing)
        return lambda: runner.predict(images)
    runner.start_training(OptimRecipe(batch=batch), DistillRecipe(), preprocessing)
    paths = drop_path_scales(0, 0, pictures.views, *architecture.drop_paths())

    def step() -> float:
        result = runner.train_step([pictures], learning_rate=1e-4, paths=[paths], teacher=[None])
        return result.loss  # a step that was only queued has not been made

    return step


def measure(
    architecture: Architecture,
    *,
    engine: str,
    batch: int,
    height: int,
    width: int,
    train: bool = False,
    repeats: int = 10,
    warmup: int = 2,
    precision: str = "float32",
    operators: str = "fast",
    **options: object,
) -> Measurement:
    """Time forward passes or training steps of random pictures.

    Args:
        options: those of the engine (attention, threads, ...).

    Raises:
        XciteError: a training step needs classes; the engine is missing.
    """
    if train and not architecture.num_classes:
        raise XciteError("a training step needs num_classes of at least 1")
    reset_resident_peak()
    before = resident_peak()
    runner = create_engine(
        engine, architecture, precision=precision, operators=operators, **options
    )
    work = work_of(runner, architecture, batch=batch, height=height, width=width, train=train)
    for _ in range(warmup):
        work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    after = resident_peak()
    peak = matrix_product_peak(engine, precision=precision, operators=operators)
    form = "usual"
    if isinstance(architecture, XCiTArchitecture):
        tokens = math.prod(architecture.grid(height, width))
        attention = str(options.get("attention", "auto"))
        fast = operators == "fast"
        if fast and uses_covariance(
            attention, tokens, architecture.embed_dim, runner.choices.covariance_above
        ):
            form = "covariance"
    count = multiply_adds(architecture, height, width, form=form) / 1e9
    quartiles = statistics.quantiles(seconds, n=4, method="inclusive")
    low, middle, high = (batch / second for second in reversed(quartiles))
    return Measurement(
        seconds,
        (low, middle, high),
        None if before is None or after is None else after - before,
        count,
        peak,
        middle * count * (3 if train else 1) / peak,
    )
