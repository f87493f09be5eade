"""The folded ONNX graph against numbers made by the official code (fixtures/goldens/SOURCE.md)."""

import gzip
import itertools
import json
import re

import numpy as np
import pytest

from reference_rule import GOLDENS, call, epsilon_probe, reference_images, reference_weights
from reference_rule import build as reference_model
from xcite import variants
from xcite.errors import XciteError
from xcite.export.graph import OPSETS, build
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
    model = build(weights, shape, size=(48, 80), attention=form)
    answer = "logits" if shape.num_classes else "embedding"
    found = run(model, reference_images((2, 3, 48, 80), 0))[answer]
    assert relative(found, expected) < TOLERANCE


def small_case(**changes):
    shape = variants.find("xcit_nano_12_p8", depth=2, num_classes=9, **changes)
    return shape, reference_weights(shape, 0), reference_images((2, 3, 40, 64), 0)


@pytest.mark.parametrize("opset", OPSETS)
def test_every_operator_set_gives_the_same(opset):
    shape, weights, images = small_case()
    expected = run(build(weights, shape, size=(40, 64)), images)["logits"]
    for size, form in itertools.product(((40, 64), None), FORMS):
        model = build(weights, shape, size=size, attention=form, opset=opset)
        onnx.checker.check_model(model, full_check=True)
        assert [imported.version for imported in model.opset_import] == [opset]
        kinds = {node.op_type for node in model.graph.node}
        assert ("Gelu" in kinds, "LayerNormalization" in kinds) == (opset >= 20, opset >= 17)
        for runtime in (run, run_openvino):
            assert relative(runtime(model, images)["logits"], expected) < TOLERANCE


@pytest.mark.parametrize("opset", [13, 20])
def test_float16_halves_the_file_and_keeps_ten_bits(opset):
    shape, weights, images = small_case()
    single = build(weights, shape, size=(40, 64))
    expected = run(single, images)["logits"]
    for size in ((40, 64), None):
        model = build(weights, shape, size=size, opset=opset, half=True)
        onnx.checker.check_model(model, full_check=True)
        (given,) = model.graph.input
        types = {v.type.tensor_type.elem_type for v in (given, *model.graph.output)}
        assert types == {onnx.TensorProto.FLOAT}
        assert model.ByteSize() < 0.6 * single.ByteSize()
        for runtime in (run, run_openvino):
            assert relative(runtime(model, images)["logits"], expected) < 3e-3
    with pytest.raises(XciteError, match="float16 cannot hold"):
        build(weights, shape, size=None, attention="covariance", half=True)


def test_float16_bears_large_numbers_and_empty_pictures():
    """Sums over tokens and lengths of nothing are what float16 cannot hold."""
    shape, weights, images = small_case()
    for name in weights:
        if name.endswith("attn.qkv.weight"):
            weights[name] = 60 * weights[name]
        if name.endswith("attn.qkv.bias"):
            weights[name] = 0 * weights[name]
    for given in (images, 0 * images):
        expected = run(build(weights, shape, size=(40, 64)), given)["logits"]
        found = run(build(weights, shape, size=(40, 64), half=True), given)["logits"]
        assert relative(found, expected) < 0.01


def test_names_are_those_of_the_weights():
    shape, weights, _ = small_case()
    model = build(weights, shape, size=(40, 64), name="xcit_nano_12_p8")
    assert (model.graph.name, model.producer_name) == ("xcit_nano_12_p8", "xcite")
    assert [value.name for value in model.graph.input] == ["images"]
    assert [value.name for value in model.graph.output] == ["logits", "class_attention"]
    named = [node.name for node in model.graph.node]
    assert len(set(named)) == len(named)
    assert {"patch_embed.proj.0", "blocks.1.mlp.fc1", "cls_attn_blocks.0.attn.q"} <= set(named)
    for part in ("patch_embed", "blocks", "cls_attn_blocks", "norm", "head"):
        assert any(name.startswith(part) for name in named)


def test_covariance_form_only_where_it_is_cheaper():
    assert prefers_covariance(784, 128)  # nano_12_p8 at 224
    assert prefers_covariance(None, 768)
    assert not prefers_covariance(196, 384)  # small_12_p16 at 224
    assert prefers_covariance(196, 128)  # nano_12_p16 at 224
    assert not prefers_covariance(196, 128, bf16=True)
    assert prefers_covariance(784, 384, bf16=True)  # small_12_p8 at 224


def test_refuses_misfit_weights_and_sizes():
    shape = variants.find("xcit_nano_12_p16", num_classes=3)
    weights = reference_weights(shape, 0)
    with pytest.raises(XciteError, match="at least 1"):
        build(weights, shape, size=(0, 32))
    with pytest.raises(XciteError, match="opset is 12; choose 13 to 23"):
        build(weights, shape, size=(32, 32), opset=12)
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
