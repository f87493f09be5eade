"""A tiny XCiT and batches that use everything: mixing, erasing, drop path."""

import numpy as np

from xcite.data.batch import Batch, Mixing
from xcite.engines import create_engine
from xcite.preprocessing import Preprocessing
from xcite.randomness import drop_path_scales
from xcite.recipe_sections import DistillRecipe, OptimRecipe
from xcite.variants import XCiTArchitecture

ARCHITECTURE = XCiTArchitecture(8, 32, 2, 4, num_classes=10, drop_path=0.2)
LEARNING_RATE = 1e-3


def start(name, architecture=ARCHITECTURE, distill=None, frozen=(), engine=None, **optim):
    """An engine that is ready to train."""
    created = create_engine(name, architecture, **(engine or {}))
    created.start_training(
        OptimRecipe(**optim), distill or DistillRecipe(), Preprocessing(), frozen=frozen
    )
    return created


def batch(number, size=6, channels=3):
    """Batch of a step: random pictures of 32 x 32 pixels, mixed by mixup or by cutmix."""
    rng = np.random.default_rng([7, number])
    labels = rng.integers(0, 10, size)
    targets = np.full((size, 10), 0.01, np.float32)
    targets[range(size), labels] = 0.91
    share = np.full(size, np.float32(rng.beta(0.8, 0.8)))
    boxes = np.full((size, 4), -1, np.int32)
    if number % 2:
        boxes[:] = 4, 20, 10, 30
        share[:] = 1 - 16 * 20 / 1024
    targets = share[:, None] * targets + (1 - share[:, None]) * targets[::-1]
    return Batch(
        rng.integers(0, 256, (size, 32, 32, channels), dtype=np.uint8),
        labels,
        np.stack([rng.permutation(100)[:size], np.zeros(size, np.int64)], 1),
        targets,
        erased=[(1, 5, 7, rng.standard_normal((channels, 9, 4)).astype(np.float32))],
        mixing=Mixing(share, boxes),
    )


def step(engine, number, learning_rate=LEARNING_RATE, teacher=None):
    """The step with this number, the same on every engine."""
    part = batch(number)
    architecture = engine.architecture
    paths = drop_path_scales(0, 0, part.views, architecture.depth, architecture.drop_path)
    return engine.train_step([part], learning_rate=learning_rate, paths=[paths], teacher=[teacher])
