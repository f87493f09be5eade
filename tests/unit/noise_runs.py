"""Runs of a tiny recipe on pictures of noise, and how to interrupt one."""

import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xcite import recipe as recipes
from xcite.recipe import Recipe
from xcite.training import checkpoint, steps

EPOCHS, STEPS = 2, 4

# Everything with a state or a draw of its own is on: mixing, drop path, warm-up, EMA, accumulation.
RECIPE = """
model: {patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2, cls_attn_layers: 1, drop_path: 0.2}
data: {workers: 0}
preprocessing: {size: 16}
augment: {randaugment: null, erasing: 0.3}
optim: {epochs: 2, batch: 6, accumulate: 2, lr: 1e-2, lr_per: null, warmup_epochs: 0.5, ema: 0.9}
run: {precision: float32, log_every: 1, keep: 1}
"""


def make_pictures(folder: Path, per_class: int, classes: str = "abc", seed: int = 0) -> Path:
    """One folder per class with pictures of noise around a colour of its own."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = rng.integers(0, 128, (20, 24, 3), dtype=np.uint8)
            pixels[..., number % 3] += 120
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def make_both(folder: Path, per_class: int = 8) -> Path:
    """Pictures to train on and others to validate with, below ``folder``."""
    make_pictures(folder / "train", per_class)
    make_pictures(folder / "val", 3, seed=1)
    return folder


def tiny(pictures: Path, engine: str, *settings: str) -> Recipe:
    where = [f"data.train={pictures / 'train'}", f"data.validation={pictures / 'val'}"]
    return recipes.parse(RECIPE, "tiny", [*where, f"run.engine={engine}", *settings])


def tensors(path: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in checkpoint.load(path).state.items()}


def deliver(number: signal.Signals) -> None:
    """Call a signal's handler as Python calls it.

    A real one in pytest's own process may meet whatever other tests left there; `tests/commands`
    sends them to processes of their own.
    """
    handler = signal.getsignal(number)
    assert callable(handler)
    handler(number, None)


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C while optimiser step ``step`` (counted from 0) is about to be done."""
    real = steps.learning_rate

    def rate(recipe: Recipe, number: int, of_epoch: int) -> float:
        if number == step:
            deliver(signal.SIGINT)
        return real(recipe, number, of_epoch)

    monkeypatch.setattr(steps, "learning_rate", rate)
