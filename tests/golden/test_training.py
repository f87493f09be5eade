"""Gradients, running statistics and five AdamW steps of both engines against the reference.

The numbers come from the official xcit.py in float64. The model's input is not made of bytes there,
so a step gets each picture as noise "erased" over its whole area.
"""

import gzip
import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from xcite import canonical, variants
from xcite.data.batch import Batch
from xcite.engines import create_engine, installed
from xcite.preprocessing import Preprocessing
from xcite.recipe import DistillRecipe, OptimRecipe

FOLDER = Path(__file__).parents[1] / "fixtures/goldens"
ARCHITECTURES = ["xcit_nano_12_p8", "xcit_tiny_12_p16"]


def golden(name):
    with gzip.open(FOLDER / f"train_{name}.json.gz", "rt", encoding="utf-8") as file:
        return json.load(file)


def reference_weights(architecture):
    """The rule that the reference's weights are drawn by, seed 0."""
    weights = {}
    for name, shape in canonical.shapes(architecture).items():
        rng = np.random.default_rng([0, zlib.crc32(name.encode())])
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "num_batches_tracked":
            weights[name] = np.zeros(shape, np.int64)
            continue
        bounds = {"running_var": (0.5, 1.5), "temperature": (0.5, 2.0)}
        if leaf.startswith("gamma"):
            value = rng.uniform(0.1, 1.0, shape)
        elif leaf in bounds:
            value = rng.uniform(*bounds[leaf], shape)
        else:
            value = rng.standard_normal(shape)
            if leaf in ("bias", "running_mean"):
                value *= 0.1
            elif leaf == "cls_token":
                value *= 0.5
            elif len(shape) == 1:
                value = 1 + 0.1 * value
            else:
                value /= np.sqrt(np.prod(shape[1:]))
        weights[name] = value.astype(np.float32)
    return weights


def reference_images():
    return np.random.default_rng([0, 7]).standard_normal((4, 3, 64, 64)).astype(np.float32)


def reference_targets():
    targets = np.zeros((4, 1000), np.float32)
    targets[range(4), [1, 2, 3, 4]] = 1
    return targets


def reference_batch():
    return Batch(
        np.zeros((4, 64, 64, 3), np.uint8),
        np.array([1, 2, 3, 4]),
        np.zeros((4, 2), np.int64),
        reference_targets(),
        erased=[(i, 0, 0, image) for i, image in enumerate(reference_images())],
    )


def training_engine(name, architecture, **optim):
    engine = create_engine(name, variants.find(architecture))
    engine.load_weights(reference_weights(engine.architecture))
    engine.start_training(OptimRecipe(**optim), DistillRecipe(), Preprocessing())
    return engine


def step(engine):
    return engine.train_step([reference_batch()], learning_rate=1e-3, paths=[None], teacher=[None])


@pytest.mark.parametrize("name", installed())
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_gradients_and_running_statistics(name, architecture):
    expected = golden(architecture)
    engine = training_engine(name, architecture)
    before = engine.read_weights()
    loss, gradients = engine.gradients(reference_images(), reference_targets())
    assert loss == pytest.approx(expected["loss"], rel=1e-6)  # float32 against float64
    assert set(gradients) == set(expected["grads"])
    largest = max(norm for norm, _ in expected["grads"].values())
    for parameter, (norm, total) in expected["grads"].items():
        gradient = gradients[parameter].astype(np.float64)
        # float32 reaches 5e-5 relative; what is exactly zero in float64 is noise here
        assert np.linalg.norm(gradient) == pytest.approx(norm, rel=2e-4, abs=1e-6 * largest)
        spread = np.sqrt(gradient.size) * norm  # a sum's rounding error scales with its summands
        assert gradient.sum() == pytest.approx(total, rel=1e-4, abs=1e-4 * spread + 1e-5)
    after = engine.read_weights()
    for tensor in before:  # gradients() changes nothing, BatchNorm's statistics included
        np.testing.assert_array_equal(before[tensor], after[tensor])

    step(engine)
    after = engine.read_weights()
    for layer, statistics in expected["bn_after_one_forward"].items():
        mean, variance = after[f"{layer}.running_mean"], after[f"{layer}.running_var"]
        # both engines keep PyTorch's unbiased variance
        assert np.linalg.norm(mean) == pytest.approx(statistics["running_mean_l2"], rel=1e-5)
        assert np.linalg.norm(variance) == pytest.approx(
            statistics["running_var_l2_unbiased"], rel=1e-5
        )
        assert variance.sum() == pytest.approx(statistics["running_var_sum_unbiased"], rel=1e-5)


# Strong decay tells the rules apart; all combinations are proven by hand.
CASES = [
    ("xcit_nano_12_p8", "brief", True),
    ("xcit_nano_12_p8", "official", True),
    ("xcit_nano_12_p8", "passl", True),
    *(
        pytest.param(architecture, rule, strong, marks=pytest.mark.slow)
        for architecture in ARCHITECTURES
        for rule in ("brief", "official", "passl")
        for strong in (False, True)
        if architecture != "xcit_nano_12_p8" or not strong
    ),
]


@pytest.mark.parametrize("name", installed())
@pytest.mark.parametrize(("architecture", "rule", "strong"), CASES)
def test_five_steps_of_adamw(name, architecture, rule, strong):
    settings = golden(architecture)["adamw"]
    expected = settings["rules"][rule]
    decay = settings["weight_decay"]
    if strong:
        expected = expected["strong_decay"]
        decay = expected["weight_decay"]
    engine = training_engine(name, architecture, weight_decay=decay, decay_rule=rule)
    losses = [step(engine).loss for _ in range(5)]
    losses.append(engine.gradients(reference_images(), reference_targets())[0])
    # float32 reaches 2e-5, the rules differ by 1e-4 and more; a small loss is the difference of
    # logits around 10, which float32 rounds by 1e-6
    np.testing.assert_allclose(losses, expected["losses"], rtol=5e-5, atol=2e-6)
    weights = engine.read_weights()
    for parameter, norm in expected["param_l2_after_5_steps"].items():
        # a class attention's key bias has no gradient: Adam makes steps of rounding noise
        tolerance = 1e-3 if "cls_attn" in parameter and "qkv.bias" in parameter else 2e-5
        assert np.linalg.norm(weights[parameter]) == pytest.approx(norm, rel=tolerance), parameter
