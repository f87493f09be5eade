"""The folded ONNX graph against numbers made by the official code (fixtures/goldens/SOURCE.md)."""

import gzip
import json
import re

import numpy as np
import pytest

from reference_rule import GOLDENS, call, epsilon_probe, reference_images, reference_weights
from reference_rule import build as reference_model
from xcite import variants
from xcite.errors import XciteError
from xcite.export.graph import build
from xcite.export.xcit_graph import prefers_covariance

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

# float32 noise of the official code itself is 2e-6; a wrong epsilon moves logits by 2e-5.
TOLERANCE = 1e-5
FORMS = ("usual", "covariance")
SHRUNK = json.loads(gzip.decompress((GOLDENS / "shrunk_variants.json.gz").read_bytes()))["variants"]


def run(model, images):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(
        zip(
            [output.name for output in session.get_outputs()],
            session.run(None, {"images": images}),
            strict=True,
        )
    )


def run_openvino(model, images):
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    read = core.read_model(model.SerializeToString())
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return {"logits": compiled(images)[0]}


def golden_cases(architecture, seeds, most=10**9):
    """(key, weights, images, logits, size) of the stored evaluations, up to that many pixels."""
    shape = variants.find(architecture)
    with np.load(GOLDENS / f"eval_{architecture}.npz") as goldens:
        for key in goldens:
            found = re.fullmatch(r"(epsprobe_)?s(\d+)_b(\d+)_(\d+)x(\d+)", key)
            if not found or int(found[2]) not in seeds:
                continue
            seed, batch, height, width = map(int, found.groups()[1:])
            if height * width > most:
                continue
            weights = reference_weights(shape, seed)
            if found[1]:
                weights = epsilon_probe(weights)
            images = reference_images((batch, 3, height, width), seed)
            yield key, weights, images, goldens[key], (height, width)


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", ["xcit_nano_12_p8", "xcit_tiny_12_p16"])
def test_fixed_and_dynamic_graphs_give_the_official_logits(architecture, form):
    shape = variants.find(architecture)
    for key, weights, images, logits, size in golden_cases(architecture, {0}, most=8000):
        for fixed in (size, None):
            model = build(weights, shape, size=fixed, attention=form)
            onnx.checker.check_model(model, full_check=True)
            found = run(model, images)["logits"]
            assert relative(found, logits) < TOLERANCE, (key, fixed)


def test_a_stem_of_other_strides():
    pytest.importorskip("torch")
    shape = variants.XCiTArchitecture(4, 16, 1, 2, num_classes=3, stem_strides=(1, 1, 2, 2))
    weights = reference_weights(shape, 0)
    images = reference_images((2, 3, 17, 20), 0)
    expected = call(reference_model("torch", shape, weights), "torch", images)
    for size in ((17, 20), None):
        found = run(build(weights, shape, size=size), images)["logits"]
        assert relative(found, expected) < TOLERANCE


def test_openvino_gives_the_official_logits():
    shape = variants.find("xcit_nano_12_p8")
    for key, weights, images, logits, size in golden_cases("xcit_nano_12_p8", {0}, most=8000):
        found = run_openvino(build(weights, shape, size=size), images)["logits"]
        assert relative(found, logits) < TOLERANCE, key


@pytest.mark.slow
@pytest.mark.parametrize("architecture", list(variants.ARCHITECTURES))
def test_all_architectures(architecture):
    shape = variants.find(architecture)
    worst = 0.0
    for _, weights, images, logits, size in golden_cases(architecture, {0, 1}):
        for runtime in (run, run_openvino):
            found = runtime(build(weights, shape, size=size), images)["logits"]
            worst = max(worst, relative(found, logits))
    print(f"{architecture}: largest error {worst:.1e} of the largest logit")
    assert worst < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", ["xcit_nano_12_p8", "xcit_tiny_12_p16"])
def test_class_attention_is_the_official_one(architecture, form):
    # The stored maps are CLS over CLS and patches of the first and of the last layer.
    with np.load(GOLDENS / f"intermediates_{architecture}.npz") as goldens:
        first, last = goldens["class_attention_first"], goldens["class_attention_last"]
    weights = reference_weights(variants.find(architecture), 0)
    model = build(weights, variants.find(architecture), size=(64, 64), attention=form)
    found = run(model, reference_images((2, 3, 64, 64), 0))["class_attention"]
    assert found.shape == (2, 2, 4, first.shape[-1])
    np.testing.assert_allclose(found[:, 0], first.reshape(found[:, 0].shape), atol=1e-5)
    np.testing.assert_allclose(found[:, 1], last.reshape(found[:, 1].shape), atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SHRUNK)
def test_other_constructor_options(name, form):
    """Four class-attention layers, no position, no qkv bias and so on."""
    options = dict(SHRUNK[name]["kwargs"])
    options["attention_scale"] = options.pop("qk_scale", None)
    shape = variants.XCiTArchitecture(**options)
    weights = reference_weights(shape, 0)
    with np.load(GOLDENS / "shrunk_variants.npz") as goldens:
        expected = goldens[name]
    if not shape.num_classes:
        with pytest.raises(XciteError, match="no classifier"):
            build(weights, shape, size=(48, 80), attention=form)
        return
    model = build(weights, shape, size=(48, 80), attention=form)
    found = run(model, reference_images((2, 3, 48, 80), 0))["logits"]
    assert relative(found, expected) < TOLERANCE


def test_covariance_form_only_where_it_is_cheaper():
    assert prefers_covariance(784, 128)  # nano_12_p8 at 224
    assert prefers_covariance(None, 768)
    assert not prefers_covariance(196, 384)  # small_12_p16 at 224


def test_refuses_misfit_weights_and_sizes():
    shape = variants.find("xcit_nano_12_p16", num_classes=3)
    weights = reference_weights(shape, 0)
    with pytest.raises(XciteError, match="at least 1"):
        build(weights, shape, size=(0, 32))
    weights.pop("norm.bias")
    with pytest.raises(XciteError, match=r"missing: norm\.bias"):
        build(weights, shape, size=(32, 32))


def test_a_tensor_that_the_graph_does_not_read_is_refused(monkeypatch):
    """As one of a new field would be, without which the file gives other answers."""
    monkeypatch.setattr("xcite.export.graph.check", lambda weights, architecture: None)
    shape = variants.find("xcit_nano_12_p16", depth=1, num_classes=3)
    weights = reference_weights(shape, 0)
    weights["blocks.0.bias1"] = weights["blocks.0.gamma1"]
    with pytest.raises(XciteError, match=r"would leave out blocks\.0\.bias1"):
        build(weights, shape, size=(32, 32))
