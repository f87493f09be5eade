"""Steps that are only queued, as on a GPU: the same numbers, and nobody reads a number meanwhile.

A CPU's tensors stand in for a GPU's: the same lines run, and streams and pinned memory, which have
no effect on numbers, are left out.
"""

import contextlib
import dataclasses

import numpy as np
import pytest
from tiny_training import ARCHITECTURE, LEARNING_RATE, batch, start

from xcite.data.batch import split
from xcite.engines import engine_package, installed
from xcite.engines.pixels import model_input
from xcite.engines.staging import Staged
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.randomness import drop_path_scales
from xcite.recipe_sections import DistillRecipe

each = pytest.mark.parametrize("name", installed())
ANSWERS = np.random.default_rng(2).standard_normal((6, 10)).astype(np.float32)


def asynchronous(name, **options):
    engine = start(name, **options)
    engine.asynchronous = True
    return engine


def step(engine, number, parts=1, broken=False):
    whole = batch(number)
    if broken:
        whole.targets[0, 0] = np.nan
    parts = split(whole, parts)
    paths = [drop_path_scales(0, 0, part.views, ARCHITECTURE.depth, 0.2) for part in parts]
    answers = [ANSWERS[: len(part)] for part in parts]
    staged = [engine.stage(part) for part in parts]
    return engine.train_step(staged, learning_rate=LEARNING_RATE, paths=paths, teacher=answers)


def assert_same(first, second, **tolerance):
    assert set(first) == set(second)
    for key, array in first.items():
        np.testing.assert_allclose(array, second[key], err_msg=key, **tolerance)


@each
@pytest.mark.parametrize("clip", [None, 0.5])
def test_queued_steps_give_the_same(name, clip):
    options = {"ema": 0.9, "clip": clip, "distill": DistillRecipe(loss="soft")}
    queued, waiting = asynchronous(name, **options), start(name, **options)
    for number in range(4):
        found, expected = step(queued, number, parts=2), step(waiting, number, parts=2)
        # pixels, clipping and the average are rounded in another order
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)
        assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-4)
    # AdamW divides by the root of a mean square, which for a gradient near zero enlarges rounding
    assert_same(queued.training_state(), waiting.training_state(), rtol=1e-3, atol=2e-5)


@each
def test_a_step_that_is_not_finite_changes_nothing_nor_do_those_behind_it(name):
    engine = asynchronous(name, ema=0.9)
    step(engine, 0)
    before = engine.training_state()
    results = [step(engine, 1, broken=True), step(engine, 2), step(engine, 3)]
    assert [result.finite for result in results] == [False, True, True]
    assert_same(engine.training_state(), before, rtol=0)
    assert before["step"] == 1
    engine.restore_training(before)
    expected = start(name, ema=0.9)
    expected.restore_training(before)
    step(engine, 2)
    step(expected, 2)
    assert_same(
        engine.training_state(), expected.training_state(), rtol=1e-3, atol=2e-5
    )  # as above


@each
def test_the_first_step_may_be_broken(name):
    engine = asynchronous(name)
    before = engine.read_weights()
    step(engine, 0, broken=True)
    assert_same(engine.read_weights(), before, rtol=0)
    state = engine.training_state()
    assert state["step"] == 0
    assert not any(np.any(array) for key, array in state.items() if key.startswith("moment"))


@contextlib.contextmanager
def counted_reads(name, monkeypatch):
    """A list that grows with every tensor whose numbers come to the processor."""
    reads = []

    def counting(method, told):
        def counted(*arguments, **options):
            reads.append(told)
            return method(*arguments, **options)

        return counted

    kind = engine_package(name).engine.Tensor
    named = ["numpy", "tolist", "item", "cpu", "__bool__", "__float__", "__int__", "__index__"]
    with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
        for method in named:
            patch.setattr(kind, method, counting(getattr(kind, method), method))
        if name == "torch":
            stack.enter_context(_watched_operators(reads))
        yield reads


def _watched_operators(reads):
    """What PyTorch itself reads beneath its Python methods."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, arguments=(), options=None):
            if operator.overloadpacket._qualified_op_name in (
                "aten::_local_scalar_dense",
                "aten::nonzero",
                "aten::equal",
                "aten::is_nonzero",
            ):
                reads.append(str(operator))
            return operator(*arguments, **(options or {}))

    return Watching()


@each
def test_a_step_reads_nothing_back(name, monkeypatch):
    options = {"ema": 0.9, "clip": 0.5, "distill": DistillRecipe(loss="hard")}
    engine = asynchronous(name, **options)
    step(engine, 0)
    with counted_reads(name, monkeypatch) as reads:
        results = [step(engine, number, parts=2) for number in (1, 2, 3)]
        assert reads == []
        assert all(result.finite for result in results)
        assert len(reads) >= 6  # looking at a result does
    with counted_reads(name, monkeypatch) as reads:
        step(start(name, **options), 1)
        assert reads  # so the count can fail: an engine that waits does read


@each
@pytest.mark.parametrize("number", [0, 1])
def test_pixels_on_the_device_follow_the_same_rule(name, number):
    """Erased, then blended by mixup or pasted by cutmix."""
    engine = asynchronous(name)
    for part in [batch(number), *split(batch(number), 2)]:
        staged = engine.stage(part)
        assert isinstance(staged, Staged)
        assert len(staged) == len(part)
        expected = model_input(part, Preprocessing())
        # fused multiply-adds round once where NumPy rounds twice
        np.testing.assert_allclose(staged.images.numpy(), expected, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(staged.targets.numpy(), part.targets)


@each
def test_what_cannot_be_staged(name):
    engine = asynchronous(name)
    with pytest.raises(XciteError, match="4 channels"):
        engine.stage(batch(0, channels=4))
    with pytest.raises(XciteError, match="needs targets"):
        engine.stage(dataclasses.replace(batch(0), targets=None))
