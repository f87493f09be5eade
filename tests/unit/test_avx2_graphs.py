"""Graphs rewritten for AVX2 alone: the same numbers, in slices, and only where it is meant."""

import math

import numpy as np
import pytest

from xcite import canonical
from xcite.processor import this_processor
from xcite.runtime import avx2_graphs
from xcite.runtime.programs import open_program
from xcite.variants import XCiTArchitecture

openvino = pytest.importorskip("openvino")
pytest.importorskip("onnx")

from openvino import opset14 as ops  # noqa: E402

from xcite.export import graph  # noqa: E402

SHAPE = XCiTArchitecture(8, 32, 2, 4, num_classes=5)
IMAGES = np.random.default_rng(0).standard_normal((3, 3, 40, 48), np.float32)


def bundle_graph(size=(40, 48)):
    weights = canonical.initial_weights(SHAPE, 0)
    return graph.build(weights, SHAPE, size=size).SerializeToString()


def answers(model, *inputs):
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(model, "CPU", hint).create_infer_request()
    request.infer(list(inputs))
    return [np.array(request.get_output_tensor(i).data) for i in range(len(model.outputs))]


def kinds(model):
    return [node.get_type_name() for node in model.get_ordered_ops()]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("slice_bytes", [1 << 30, 4000, 1])
def test_a_model_gives_the_same_numbers(batch, slice_bytes, monkeypatch):
    monkeypatch.setattr(avx2_graphs, "SLICE_BYTES", slice_bytes)
    images = IMAGES[:batch]
    plain = openvino.Core().read_model(bundle_graph(), b"")
    plain.reshape(list(images.shape))
    model = plain.clone()
    avx2_graphs.rewrite(model)
    assert "Gelu" in kinds(plain)
    assert "Gelu" not in kinds(model)
    # an MLP of one slice is left whole
    cut = kinds(model).count("VariadicSplit") > kinds(plain).count("VariadicSplit")
    assert cut == (slice_bytes < 1 << 30)
    assert [o.get_names() for o in model.outputs] == [o.get_names() for o in plain.outputs]
    for ours, theirs in zip(answers(model, images), answers(plain, images), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=2e-6 * np.abs(theirs).max())


def test_a_dynamic_model_is_not_sliced(monkeypatch):
    monkeypatch.setattr(avx2_graphs, "SLICE_BYTES", 4000)
    plain = openvino.Core().read_model(bundle_graph(size=None), b"")
    model = plain.clone()
    avx2_graphs.rewrite(model)
    assert kinds(model).count("VariadicSplit") == kinds(plain).count("VariadicSplit")
    for ours, theirs in zip(answers(model, IMAGES), answers(plain, IMAGES), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6 * np.abs(theirs).max())


def test_gelu_is_exact_to_float32():
    x = ops.parameter([400_001], np.float32)
    model = openvino.Model([ops.gelu(x, "erf")], [x])
    avx2_graphs.rewrite(model)
    given = np.linspace(-20, 20, 400_001, dtype=np.float32)
    given[:3] = np.inf, -np.inf, np.nan
    (found,) = answers(model, given)
    exact = np.array([v / 2 * (1 + math.erf(v / 2**0.5)) for v in given.tolist()])
    assert found[0] == np.inf
    assert np.isnan(found[2])
    error = np.abs(found[3:] - exact[3:])
    # the error function within 3e-7, and rounding; half of it times x
    assert (error <= 4e-7 * np.maximum(1, np.abs(given[3:]))).all()


@pytest.mark.parametrize("without", ["gelu of tanh", "two readers", "weights of activations"])
def test_what_is_no_mlp_stays(without, monkeypatch):
    monkeypatch.setattr(avx2_graphs, "SLICE_BYTES", 1)
    random = np.random.default_rng(0)
    x = ops.parameter([2, 7, 4], np.float32)
    by_itself = without == "weights of activations"
    weight = x if by_itself else ops.constant(random.standard_normal((4, 4), np.float32))
    first = ops.matmul(x, weight, False, True)
    hidden = ops.gelu(first, "tanh" if without == "gelu of tanh" else "erf")
    weight = ops.constant(random.standard_normal((7 if by_itself else 4, 4), np.float32))
    outputs = [ops.matmul(hidden, weight, False, False)]
    if without == "two readers":
        outputs.append(ops.relu(hidden))
    plain = openvino.Model(outputs, [x])
    model = plain.clone()
    avx2_graphs.rewrite(model)
    assert "VariadicSplit" not in kinds(model)
    assert ("Gelu" in kinds(model)) == (without == "gelu of tanh")
    given = random.standard_normal((2, 7, 4), np.float32)
    for ours, theirs in zip(answers(model, given), answers(plain, given), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_programs_are_rewritten_with_avx2_alone(tmp_path, monkeypatch, precision):
    called = []
    monkeypatch.setattr(avx2_graphs, "rewrite", called.append)
    path = tmp_path / "a.onnx"
    path.write_bytes(bundle_graph())
    program = open_program(path, runtime="openvino", precision=precision, usual=(40, 48))
    program.logits(IMAGES)
    meant = this_processor().instruction_set == "AVX2"
    assert bool(called) == (meant and program.precision == "f32")
