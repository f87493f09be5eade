"""What a step does and what it leaves alone, on every installed engine."""

import dataclasses
import importlib

import numpy as np
import pytest
from tiny_training import ARCHITECTURE, LEARNING_RATE, batch, start, step

from xcite import create_model
from xcite.engines import create_engine, installed
from xcite.engines.pixels import model_input
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.recipe_sections import QUESTIONS, DistillRecipe
from xcite.runtime.ranking import probabilities
from xcite.variants import RegNetArchitecture

PREPROCESSING = Preprocessing()
each = pytest.mark.parametrize("name", installed())


def images(size=3, height=32, width=32, channels=3):
    rng = np.random.default_rng(1)
    return rng.standard_normal((size, channels, height, width)).astype(np.float32)


def assert_same(first, second):
    assert set(first) == set(second)
    for key, array in first.items():
        np.testing.assert_array_equal(array, second[key], err_msg=key)


@each
def test_accumulation_weighs_parts_by_their_size(name):
    parts = [batch(0, size=2), batch(1, size=6)]
    engine = start(name)
    losses, gradients = zip(
        *(engine.gradients(model_input(part, PREPROCESSING), part.targets) for part in parts),
        strict=True,
    )
    result = engine.train_step(
        parts, learning_rate=LEARNING_RATE, paths=[None, None], teacher=[None, None]
    )
    assert result.loss == pytest.approx((2 * losses[0] + 6 * losses[1]) / 8, rel=1e-6)
    whole = {n: (2 * gradients[0][n] + 6 * gradients[1][n]) / 8 for n in gradients[0]}
    norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in whole.values()))
    assert result.gradient_norm == pytest.approx(norm, rel=1e-5)
    state = engine.training_state()
    assert state["step"] == 1
    assert state["weights/blocks.0.local_mp.bn.num_batches_tracked"] == 2  # BatchNorm per part
    for parameter, gradient in whole.items():
        # 1 - beta1 of the gradient
        np.testing.assert_allclose(
            state[f"moment1/{parameter}"], 0.1 * gradient, rtol=1e-4, atol=1e-8
        )


@each
def test_a_step_may_have_a_loss_of_its_own(name):
    answers = np.random.default_rng(2).standard_normal((6, 10)).astype(np.float32)
    first = DistillRecipe(loss="soft", alpha=0.9, tau=4.0, teacher="t")
    other = first.model_copy(update={"alpha": 0.2, "tau": 1.5})
    losses = {}
    for told, given in ((first, None), (other, None), (first, other)):
        part = batch(0)
        engine = start(name, distill=told)
        result = engine.train_step(
            [part], learning_rate=LEARNING_RATE, paths=[None], teacher=[answers], distill=given
        )
        losses[told is first, given is other] = result, engine.read_weights()
    assert losses[True, True][0] == losses[False, False][0] != losses[True, False][0]
    assert_same(losses[True, True][1], losses[False, False][1])


@each
@pytest.mark.parametrize("broken", [np.inf, np.nan])
def test_a_loss_that_is_not_finite_changes_nothing(name, broken):
    engine = start(name, ema=0.9)
    step(engine, 0)
    before = engine.training_state()
    bad = batch(1)
    bad.targets[0, 0] = broken
    result = engine.train_step(
        [batch(2), bad], learning_rate=LEARNING_RATE, paths=[None, None], teacher=[None, None]
    )
    assert not np.isfinite(result.loss)
    assert_same(before, engine.training_state())
    assert np.isfinite(step(engine, 3).loss)
    assert engine.training_state()["step"] == 2


@each
def test_a_gradient_that_is_not_finite_changes_nothing(name):
    engine = start(name, ema=0.9)
    step(engine, 0)
    weights = engine.read_weights()
    weights["head.weight"] *= np.float32(1e30)  # its square is more than float32 holds
    engine.load_weights(weights)
    before = engine.training_state()
    result = step(engine, 1)
    assert np.isfinite(result.loss)
    assert not np.isfinite(result.gradient_norm)
    assert_same(before, engine.training_state())


@each
def test_an_interruption_after_the_gradients_changes_nothing(name, monkeypatch):
    engine = start(name, ema=0.9)
    step(engine, 0)
    before = engine.training_state()
    with monkeypatch.context() as patch:
        patch.setattr(engine._training.optimizer, "gradient_norm", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            step(engine, 1)
    assert_same(before, engine.training_state())
    expected = start(name, ema=0.9)
    step(expected, 0)
    assert step(engine, 1) == step(expected, 1)


def _interrupt():
    raise KeyboardInterrupt


@each
def test_an_interruption_in_a_step_changes_nothing(name):
    engine = start(name, ema=0.9)
    step(engine, 0)
    before = engine.training_state()
    with pytest.raises(XciteError, match="targets"):  # stands for whatever stops the second part
        engine.train_step(
            [batch(1), dataclasses.replace(batch(1), targets=None)],
            learning_rate=LEARNING_RATE,
            paths=[None, None],
            teacher=[None, None],
        )
    assert_same(before, engine.training_state())
    expected = start(name, ema=0.9)
    step(expected, 0)
    assert step(engine, 1) == step(expected, 1)  # no gradient was left behind


@each
def test_frozen_parts_stay(name):
    engine = start(name, frozen=["patch_embed", "blocks.0."])
    before = engine.read_weights()
    step(engine, 0)
    after = engine.read_weights()
    for tensor, array in before.items():
        frozen = tensor.startswith(("patch_embed", "blocks.0."))
        assert np.array_equal(array, after[tensor]) == frozen, tensor
    state = engine.training_state()
    assert not any(key.startswith("moment1/patch_embed") for key in state)
    assert "moment1/blocks.1.gamma1" in state
    with pytest.raises(XciteError, match="nothing is left"):
        start(name, frozen=[""])


@each
def test_moving_average_is_kept_and_evaluated(name):
    engine = start(name, ema=0.8)
    expected = engine.read_weights()
    for number in range(3):
        step(engine, number)
        for tensor, array in engine.read_weights().items():
            expected[tensor] = 0.8 * expected[tensor] + 0.2 * array
    average = engine.read_weights(ema=True)
    for tensor, array in average.items():
        if tensor.endswith("num_batches_tracked"):
            assert array == 3
        else:
            np.testing.assert_allclose(array, expected[tensor], rtol=1e-5, atol=1e-6)
    other = create_engine(name, ARCHITECTURE)
    other.load_weights(average)
    logits = engine.predict(images(), ema=True)
    np.testing.assert_array_equal(other.predict(images()), logits)
    assert not np.allclose(engine.predict(images()), logits)
    with pytest.raises(XciteError, match=r"optim\.ema"):
        start(name).predict(images(), ema=True)


@each
def test_clipping_scales_the_gradient(name):
    free, clipped = start(name), start(name, clip=0.01)
    results = [step(engine, 0) for engine in (free, clipped)]
    assert results[0] == results[1]  # the norm is the one before clipping
    scale = 0.01 / results[0].gradient_norm
    assert scale < 1
    moments = [engine.training_state()["moment1/head.weight"] for engine in (free, clipped)]
    np.testing.assert_allclose(moments[1], moments[0] * scale, rtol=1e-5)


@each
@pytest.mark.parametrize("kind", QUESTIONS)
def test_distillation_is_part_of_the_step(name, kind):
    teacher = np.random.default_rng(3).standard_normal((6, 10)).astype(np.float32)
    plain = step(start(name), 0)
    taught = step(start(name, distill=DistillRecipe(loss=kind)), 0, teacher=teacher)
    assert taught.loss != plain.loss
    if kind == "hard":
        classes = teacher.argmax(-1)
        cached = step(start(name, distill=DistillRecipe(loss=kind)), 0, teacher=classes)
        assert cached == taught


@each
def test_any_size_and_channels(name):
    architecture = dataclasses.replace(ARCHITECTURE, in_chans=1, num_classes=4)
    engine = create_engine(name, architecture)
    assert engine.predict(images(2, 40, 27, channels=1)).shape == (2, 4)
    assert engine.features(images(2, 40, 27, channels=1)).shape == (2, 32)
    with pytest.raises(XciteError, match=r"\(batch, 1, height, width\)"):
        engine.predict(images())


@each
def test_attention_maps_and_activations(name):
    engine = create_engine(name, ARCHITECTURE)
    before = engine.read_weights()
    maps = engine.attention(images(2, 40, 27))
    assert [a.shape for a in maps.classes] == [(2, 4, 1 + 5 * 4)] * 2
    assert [a.shape for a in maps.channels] == [(2, 4, 8, 8)] * 2
    for attention in (*maps.classes, *maps.channels):
        np.testing.assert_allclose(attention.sum(-1), 1, rtol=1e-5)
    outputs = engine.activations(images(2, 40, 27), train=True)
    assert list(outputs) == [
        "patch_embed",
        "pos_embeder",
        "blocks.0",
        "blocks.1",
        "cls_token",
        "cls_attn_blocks.0",
        "cls_attn_blocks.1",
        "norm",
        "head",
    ]
    assert outputs["norm"].shape == (2, 21, 32)
    assert_same(before, engine.read_weights())
    np.testing.assert_allclose(
        engine.activations(images())["head"], engine.predict(images()), rtol=1e-5, atol=1e-6
    )


@each
def test_a_regnet_trains_too(name):
    architecture = RegNetArchitecture(16, 16.0, 1.6, 8, 5, num_classes=10)
    engine = start(name, architecture)
    results = [
        engine.train_step([batch(0)], learning_rate=1e-3, paths=[None], teacher=[None])
        for _ in range(3)
    ]
    assert results[2].loss < results[0].loss
    with pytest.raises(XciteError, match="RegNet"):
        engine.attention(images())


@each
def test_training_needs_to_be_started(name):
    engine = create_engine(name, ARCHITECTURE)
    with pytest.raises(XciteError, match="start_training"):
        step(engine, 0)
    with pytest.raises(XciteError, match="precision"):
        create_engine(name, ARCHITECTURE, precision="float16")
    with pytest.raises(XciteError, match="tf32 is a precision of NVIDIA's GPUs"):
        create_engine(name, ARCHITECTURE, precision="tf32", device="cpu")
    with pytest.raises(XciteError, match=r"run\.compile"):
        create_engine(name, ARCHITECTURE, compile="cuda-graphs", device="cpu")
    with pytest.raises(XciteError, match="unknown device 'cuda:x'; choose auto, cpu"):
        create_engine(name, ARCHITECTURE, device="cuda:x")


@each
def test_operators_that_cannot_be_built(name):
    with pytest.raises(XciteError, match="unknown operators 'quick'; choose fast or plain"):
        create_engine(name, ARCHITECTURE, operators="quick")
    with pytest.raises(XciteError, match="plain operators have no covariance form"):
        create_model("xcit_nano_12_p8", engine=name, operators="plain", attention="covariance")


def test_bf16_on_a_cpu_is_refused_by_paddle():
    paddle = pytest.importorskip("paddle")
    if paddle.get_device() != "cpu":
        pytest.skip("there is an accelerator")
    with pytest.raises(XciteError, match="bf16 on a CPU"):
        create_engine("paddle", ARCHITECTURE, precision="bf16")
    with pytest.raises(XciteError, match=r"run\.compile"):
        create_engine("paddle", ARCHITECTURE, compile=True)


def test_bf16_on_torch_stays_close_and_keeps_float32_weights():
    pytest.importorskip("torch")
    exact = start("torch", ema=0.9)
    rough = start("torch", ema=0.9, engine={"precision": "bf16"})
    for number in range(3):
        # bfloat16 has 8 bits: products are good to 4e-3, losses of 2.3 to about 1e-2
        assert step(rough, number).loss == pytest.approx(step(exact, number).loss, abs=0.03)
    state = rough.training_state()
    assert {a.dtype.name for a in state.values()} == {"float32", "int64"}
    assert rough.predict(images()).dtype == np.float32


@pytest.mark.slow
def test_compiled_steps_agree():
    pytest.importorskip("torch")
    plain, compiled = start("torch"), start("torch", engine={"compile": True})
    for number in range(3):
        # compiled kernels round differently
        assert step(compiled, number).loss == pytest.approx(step(plain, number).loss, rel=1e-3)
    np.testing.assert_allclose(
        compiled.predict(images()), compiled.model.eval()(_tensor(images())).detach(), atol=1e-5
    )


def _tensor(array):
    return importlib.import_module("torch").from_numpy(array)


@each
def test_saved_program_gives_the_same_logits(name, tmp_path):
    engine = create_engine(name, dataclasses.replace(ARCHITECTURE, depth=1, cls_attn_layers=1))
    path = tmp_path / "program"
    outputs = engine.save_program(path)
    if name == "torch":
        assert [p.name for p in tmp_path.iterdir()] == ["program.pt2"]
        export = importlib.import_module("torch.export")
        module = export.load(tmp_path / "program.pt2").module()
        assert outputs == ["logits"]
        logits = {"call": lambda x: module(_tensor(x)).detach().numpy()}
    else:
        names = sorted(p.name for p in tmp_path.iterdir())
        assert names == ["program.json", "program.pdiparams"]
        paddle = importlib.import_module("paddle")
        module = paddle.jit.load(str(path))
        assert outputs == ["probabilities", "logits"]
        shares, _ = (part.numpy() for part in module(paddle.to_tensor(images(2))))
        np.testing.assert_allclose(shares, probabilities(engine.predict(images(2))), atol=1e-6)
        logits = {"call": lambda x: module(paddle.to_tensor(x))[1].numpy()}
    for given in (images(1), images(3, 48, 80)):  # batch and size are dynamic
        np.testing.assert_allclose(
            logits["call"](given), engine.predict(given), rtol=1e-5, atol=1e-6
        )
    assert np.isfinite(engine.predict(images())).all()  # the engine goes on working
