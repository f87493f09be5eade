"""A run goes on where it stopped: bit for bit on the same engine, in close agreement on another."""

import dataclasses

import numpy as np
import pytest
from tiny_training import ARCHITECTURE, start, step

from xcite.engines import installed
from xcite.errors import XciteError

OTHER = {"paddle": "torch", "torch": "paddle"}
both = pytest.mark.skipif(len(installed()) < 2, reason="needs both engines")


def losses(engine, numbers, **options):
    return [step(engine, number, **options).loss for number in numbers]


@pytest.mark.parametrize("name", installed())
def test_three_and_three_are_six_bit_for_bit(name):
    # dropout included: its draws belong to the step, not to the process
    architecture = dataclasses.replace(ARCHITECTURE, drop_rate=0.1)
    options = {"architecture": architecture, "ema": 0.9, "clip": 1.0}
    whole = start(name, **options)
    expected = losses(whole, range(6))

    first = start(name, **options)
    begun = losses(first, range(3))
    state = first.training_state()
    second = start(name, **options)
    step(second, 11)  # whatever it was before, the state replaces all of it
    second.restore_training(state)
    assert begun + losses(second, range(3, 6)) == expected

    end, expected_end = second.training_state(), whole.training_state()
    assert set(end) == set(expected_end)
    assert {key.split("/")[0] for key in end} == {"weights", "moment1", "moment2", "ema", "step"}
    for key, array in expected_end.items():
        np.testing.assert_array_equal(end[key], array, err_msg=key)


@both
@pytest.mark.parametrize("name", installed())
def test_three_and_three_across_engines(name):
    whole = start(name, ema=0.9)
    expected = losses(whole, range(6))

    first = start(name, ema=0.9)
    begun = losses(first, range(3))
    second = start(OTHER[name], ema=0.9)
    second.restore_training(first.training_state())
    for key, array in first.training_state().items():  # nothing is lost on the way
        np.testing.assert_array_equal(second.training_state()[key], array, err_msg=key)
    # Adam turns gradients that are zero but for rounding into steps of the learning rate, and the
    # engines round differently; 1e-3 is what the recipes' loss curves are held to as well.
    np.testing.assert_allclose(begun + losses(second, range(3, 6)), expected, rtol=1e-3)
    assert second.training_state()["step"] == 6


@both
def test_ten_losses_of_both_engines_agree():
    curves = [losses(start(name, ema=0.9), range(10)) for name in installed()]
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-3)
    assert len(set(curves[0])) == 10


@both
def test_one_step_of_both_engines_agrees():
    engines = [start(name) for name in installed()]
    results = [step(engine, 0, learning_rate=1e-3) for engine in engines]
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-6)
    assert results[0].gradient_norm == pytest.approx(results[1].gradient_norm, rel=1e-5)
    first, second = (engine.training_state() for engine in engines)
    for key in first:
        if key.endswith(("running_mean", "running_var")) or key.startswith("moment"):
            scale = np.abs(first[key]).max()
            # moments are a tenth of a gradient, which may cancel to rounding noise of 1e-6
            np.testing.assert_allclose(
                first[key], second[key], rtol=0, atol=1e-4 * scale + 1e-6, err_msg=key
            )


@pytest.mark.parametrize("name", installed())
def test_a_state_that_does_not_fit_is_refused(name):
    state = start(name).training_state()
    with pytest.raises(XciteError, match="not a training checkpoint"):
        start(name).restore_training({k: a for k, a in state.items() if k != "step"})
    with pytest.raises(XciteError, match="moment1 that fits cls_token"):
        start(name).restore_training({k: a for k, a in state.items() if "cls_token" not in k})
    engine = start(name, ema=0.9)
    before = engine.training_state()
    with pytest.raises(XciteError, match="moving average"):  # the state has none
        engine.restore_training(state)
    for key, array in engine.training_state().items():
        np.testing.assert_array_equal(array, before[key])
