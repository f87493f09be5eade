"""Whatever is chosen, logits and gradients differ by rounding only, and a run keeps its choices."""

import numpy as np
import pytest

from xcite.choices import default_choices
from xcite.engines import create_engine, installed
from xcite.evaluation.throughput import random_batch
from xcite.preprocessing import Preprocessing
from xcite.recipe_sections import DistillRecipe, OptimRecipe
from xcite.tuning.knobs import Work, knobs
from xcite.variants import XCiTArchitecture

SHAPE = XCiTArchitecture(patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5)
SIZE = 96  # 144 tokens: more than a slice of 392 together, and more than sixteen per channel


def trained(engine, choices, precision):
    """Logits before a step, its loss and gradient norm, and the weights after it."""
    runner = create_engine(engine, SHAPE, precision=precision, choices=choices)
    preprocessing = Preprocessing(size=SIZE)
    batch = random_batch(SHAPE, 6, SIZE, SIZE)
    images = np.random.default_rng(0).standard_normal((6, 3, SIZE, SIZE), np.float32)
    logits = runner.predict(images)
    runner.start_training(OptimRecipe(batch=6), DistillRecipe(), preprocessing)
    step = runner.train_step([batch], learning_rate=1e-3, paths=[None], teacher=[None])
    return logits, step, runner.predict(images)


CASES = [
    (engine, precision, knob, value)
    for engine, precision in (("paddle", "float32"), ("torch", "float32"), ("torch", "bf16"))
    if engine in installed()
    for knob, values in knobs(Work(SHAPE, engine, 6, SIZE, SIZE, precision)).items()
    for value in values
]


@pytest.fixture(scope="module")
def usual():
    kept = {}

    def of(engine, precision):
        if (engine, precision) not in kept:
            kept[engine, precision] = trained(engine, default_choices(engine), precision)
        return kept[engine, precision]

    return of


@pytest.mark.parametrize(("engine", "precision", "knob", "value"), CASES)
def test_choices_differ_by_rounding_only(usual, engine, precision, knob, value):
    choices = default_choices(engine).model_copy(update={"apart_from": 0, knob: value})
    got, want = trained(engine, choices, precision), usual(engine, precision)
    # float32: sums of up to 576 products, relative to the largest; bfloat16 keeps 8 bits
    tolerance = 2e-5 if precision == "float32" else 2e-2
    assert np.abs(got[0] - want[0]).max() <= tolerance * np.abs(want[0]).max()
    assert got[1].loss == pytest.approx(want[1].loss, rel=tolerance)
    assert got[1].gradient_norm == pytest.approx(want[1].gradient_norm, rel=10 * tolerance)
    # AdamW's first step moves by the sign of a gradient, also of one that is all rounding
    assert np.abs(got[2] - want[2]).max() <= 50 * tolerance * np.abs(want[2]).max()


@pytest.mark.parametrize("engine", installed())
def test_choices_may_change_between_steps(engine):
    runner = create_engine(engine, SHAPE)
    images = np.random.default_rng(0).standard_normal((2, 3, SIZE, SIZE), np.float32)
    before = runner.predict(images)
    other = runner.choices.model_copy(update={"covariance_above": 1e9, "slice_bytes": 1568})
    runner.choose(other)
    assert runner.choices == other
    np.testing.assert_allclose(runner.predict(images), before, atol=2e-5 * np.abs(before).max())
    runner.choose(default_choices(engine))
    np.testing.assert_array_equal(runner.predict(images), before)
