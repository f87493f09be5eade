"""What models offer besides logits: features, checkpointing, drop path, statistics, export."""

import importlib
from dataclasses import replace

import numpy as np
import pytest

from reference_rule import (
    build,
    call,
    reference_images,
    reference_weights,
    relative_error,
    tensor,
)
from xcite import canonical
from xcite.engines import installed
from xcite.engines.intermediates import pyramid_blocks
from xcite.engines.operators import OPERATORS
from xcite.errors import XciteError
from xcite.variants import RegNetArchitecture, XCiTArchitecture

XCIT = XCiTArchitecture(8, 32, 3, 2, num_classes=10)
REGNET = RegNetArchitecture(16, 16.0, 1.6, 8, 5, num_classes=10)
IMAGES = reference_images((4, 3, 48, 80), 0)
each_engine = pytest.mark.parametrize("engine", installed())
each_operators = pytest.mark.parametrize("operators", OPERATORS)


def train_step(model, images, paths=None):
    """Logits and the gradients of their first column's sum, canonical names to arrays."""
    state = importlib.import_module(f"xcite.engines.{model.engine}.canonical_state")
    paths = None if paths is None else tensor(model.engine, paths)
    logits = model(tensor(model.engine, images), paths)
    logits[:, 0].sum().backward()
    gradients = {
        state.canonical_name(name): state.to_canonical(state.canonical_name(name), p.grad)
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    return logits.detach().numpy(), gradients


def weights_of(model):
    return importlib.import_module(f"xcite.engines.{model.engine}").read_weights(model)


@each_engine
@pytest.mark.parametrize("architecture", [XCIT, REGNET], ids=["xcit", "regnet"])
def test_weights_survive_a_model(engine, architecture):
    weights = reference_weights(architecture, 3)
    found = weights_of(build(engine, architecture, weights))
    assert list(found) == list(canonical.shapes(architecture))
    for name, array in weights.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert found[name].dtype == array.dtype


@each_engine
def test_wrong_weights_are_refused(engine):
    weights = reference_weights(XCIT, 0)
    weights["head.weigth"] = weights.pop("head.weight")
    with pytest.raises(XciteError, match=r"missing: head.weight; not part .*: head.weigth"):
        build(engine, XCIT, weights)


@each_engine
@pytest.mark.parametrize("patch", [2, 4, 8, 16])
def test_any_size_channels_and_features(engine, patch):
    architecture = XCiTArchitecture(patch, 16, 1, 2, num_classes=0, in_chans=5)
    model = build(engine, architecture, reference_weights(architecture, 0))
    images = np.random.default_rng(0).standard_normal((2, 5, 37, 18)).astype(np.float32)
    assert call(model, engine, images).shape == (2, 16)
    (tokens,) = intermediates(model, images, [-1])
    assert tokens.shape == (2, 16, -(-37 // patch), -(-18 // patch))


def intermediates(model, images, indices, **options):
    """Only the chosen blocks' outputs."""
    options = {"intermediates_only": True, **options}
    return call(lambda x: model.forward_intermediates(x, indices, **options), model.engine, images)


@each_engine
@each_operators
def test_intermediates_are_the_blocks_tokens(engine, operators):
    model = build(engine, XCIT, reference_weights(XCIT, 0), operators=operators)
    named = call(model.named_outputs, engine, IMAGES)
    layers = intermediates(model, IMAGES, [2, 0])
    for block, layer in zip((2, 0), layers, strict=True):
        tokens = layer.reshape(4, 32, -1).swapaxes(1, 2)
        np.testing.assert_array_equal(tokens, named[f"blocks.{block}"])
    final, last = intermediates(
        model, IMAGES, 1, norm=True, output_fmt="NLC", intermediates_only=False
    )
    np.testing.assert_array_equal(final, named["norm"])
    assert last[0].shape == (4, 60, 32)
    assert len(intermediates(model, IMAGES, None)) == 3
    with pytest.raises(XciteError, match="no block 3; the model has blocks 0 to 2"):
        intermediates(model, IMAGES, [3])
    with pytest.raises(XciteError, match="the last 4 blocks are asked for; the model has 3"):
        intermediates(model, IMAGES, 4)
    with pytest.raises(XciteError, match="unknown output_fmt 'NHWC'; choose NCHW or NLC"):
        intermediates(model, IMAGES, 1, output_fmt="NHWC")


@each_engine
@pytest.mark.parametrize("architecture", [XCIT, REGNET], ids=["xcit", "regnet"])
def test_feature_info_describes_what_blocks_give(engine, architecture):
    model = build(engine, architecture, reference_weights(architecture, 0))
    layers = intermediates(model, IMAGES, None)
    assert len(layers) == len(model.feature_info)
    for info, layer in zip(model.feature_info, layers, strict=True):
        stride = info["reduction"]
        assert layer.shape == (4, info["num_chs"], -(-48 // stride), -(-80 // stride))
    named = call(model.named_outputs, engine, IMAGES)
    assert {info["module"] for info in model.feature_info} <= set(named)


@each_engine
@each_operators
@pytest.mark.parametrize("architecture", [XCIT, REGNET], ids=["xcit", "regnet"])
def test_reset_classifier(engine, operators, architecture):
    model = build(engine, architecture, reference_weights(architecture, 0), operators=operators)
    model.reset_classifier(7)
    assert call(model, engine, IMAGES).shape == (4, 7)
    assert model.architecture.num_classes == 7
    assert set(weights_of(model)) == set(canonical.shapes(model.architecture))
    model.reset_classifier(0)
    features = call(model.forward_features, engine, IMAGES)
    assert features.shape == (4, model.num_features)
    np.testing.assert_array_equal(call(model, engine, IMAGES), features)


@each_engine
@each_operators
@pytest.mark.parametrize("architecture", [XCIT, REGNET], ids=["xcit", "regnet"])
def test_other_images_are_refused(engine, operators, architecture):
    model = build(engine, architecture, reference_weights(architecture, 0), operators=operators)
    wanted = r"the model takes a floating tensor \(batch, 3, height, width\); this is an? "
    wrong = [IMAGES, tensor(engine, IMAGES.astype(np.uint8))]
    wrong += [tensor(engine, np.ascontiguousarray(IMAGES[:, :2])), tensor(engine, IMAGES[0])]
    for images in wrong:
        for function in (model, model.forward_features, model.named_outputs):
            with pytest.raises(XciteError, match=wanted):
                function(images)


@each_engine
@pytest.mark.parametrize("patch", [4, 8, 16])
def test_feature_pyramid(engine, patch):
    """The maps have strides 4 to 32; the pyramid's own weights are trained and stored with it."""
    architecture = replace(XCIT, patch_size=patch)
    model = build(engine, architecture, reference_weights(architecture, 0))
    images = reference_images((1, 3, 64, 96), 0)
    module = importlib.import_module(f"xcite.engines.{engine}.pyramid")
    pyramid = module.FeaturePyramid(model)
    pyramid.eval()
    maps = call(pyramid, engine, images)
    assert [m.shape for m in maps] == [(1, 32, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
    layers = intermediates(model, images, [0, 0, 1, 2])
    same = {4: 0, 8: 1, 16: 2}[patch]
    np.testing.assert_array_equal(maps[same], layers[same])
    if patch == 8:  # the last level is pooled by 4
        pooled = layers[3].reshape(1, 32, 2, 4, 3, 4).max((3, 5))
        np.testing.assert_array_equal(maps[3], pooled)
    assert set(weights_of(model)) == set(canonical.shapes(architecture))
    names = {name for name, _ in pyramid.named_parameters()}
    own = {name for name in names if name.startswith("levels.")}
    assert names - own == {f"model.{name}" for name, _ in model.named_parameters()}
    assert bool(own) == (patch > 4)
    assert {n for n in pyramid.state_dict() if n.startswith("levels.")} >= own


def test_blocks_of_the_pyramid():
    # The official detection backbone's out_indices.
    assert pyramid_blocks(12) == [3, 5, 7, 11]
    assert pyramid_blocks(24) == [7, 11, 15, 23]


@each_engine
@pytest.mark.parametrize("architecture", [XCIT, REGNET], ids=["xcit", "regnet"])
def test_activation_checkpointing_changes_no_number(engine, architecture):
    weights = reference_weights(architecture, 0)
    plain, lean = (
        build(engine, architecture, weights, train=True, activation_checkpointing=c)
        for c in (False, True)
    )
    expected, found = train_step(plain, IMAGES), train_step(lean, IMAGES)
    np.testing.assert_array_equal(found[0], expected[0])
    assert set(found[1]) == set(expected[1])
    for name, gradient in expected[1].items():
        # The same kernels run again; sums of gradients may be added in another order.
        scale = abs(gradient).max()
        np.testing.assert_allclose(found[1][name], gradient, atol=1e-5 * scale, err_msg=name)
    # Each batch counts once in BatchNorm, although its block ran twice.
    for name, array in weights_of(plain).items():
        np.testing.assert_array_equal(weights_of(lean)[name], array, err_msg=name)


@each_engine
@pytest.mark.parametrize("architecture", [XCIT, REGNET], ids=["xcit", "regnet"])
def test_running_variance_is_the_unbiased_one(engine, architecture):
    weights = reference_weights(architecture, 0)
    model = build(engine, architecture, weights, train=True)
    first = "patch_embed.proj.0" if architecture is XCIT else "stem"
    convolution, norm = (
        first + suffix
        for suffix in ((".0.weight", ".1") if architecture is XCIT else (".conv.weight", ".bn"))
    )
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(IMAGES, ((0, 0), (0, 0), (1, 1), (1, 1))).astype(np.float64), (3, 3), (2, 3)
    )[:, :, ::2, ::2]
    outputs = np.einsum("bchwyx,ocyx->obhw", windows, weights[convolution]).reshape(
        len(weights[convolution]), -1
    )
    call(model, engine, IMAGES)
    found = weights_of(model)
    variance = 0.9 * weights[f"{norm}.running_var"] + 0.1 * outputs.var(axis=1, ddof=1)
    np.testing.assert_allclose(found[f"{norm}.running_var"], variance, rtol=1e-5)
    mean = 0.9 * weights[f"{norm}.running_mean"] + 0.1 * outputs.mean(axis=1)
    np.testing.assert_allclose(found[f"{norm}.running_mean"], mean, rtol=1e-4, atol=1e-6)
    assert found[f"{norm}.num_batches_tracked"] == 1


@each_engine
def test_dropped_paths(engine):
    """A picture whose branches are all dropped leaves the blocks as it entered them."""
    weights = reference_weights(XCIT, 0)
    paths = np.full((3, 3, 4), 1 / 0.8, np.float32)
    paths[:, :, 1] = 0
    outputs = outputs_with_paths(engine, weights, paths)
    np.testing.assert_array_equal(outputs["blocks.2"][1], outputs["blocks.0"][1])
    assert relative_error(outputs["blocks.2"][0], outputs["blocks.0"][0]) > 0.1


@each_engine
@pytest.mark.parametrize(("branch", "gamma"), [(0, "gamma1"), (1, "gamma3"), (2, "gamma2")])
def test_paths_are_in_the_order_of_the_branches(engine, branch, gamma):
    """XCA, LPI, MLP: silencing the one branch that is left is like dropping it, too."""
    weights = reference_weights(XCIT, 0)
    paths = np.zeros((3, 3, 4), np.float32)
    nothing = outputs_with_paths(engine, weights, paths)["blocks.2"]
    paths[0, branch] = 1
    one = outputs_with_paths(engine, weights, paths)["blocks.2"]
    weights[f"blocks.0.{gamma}"] *= 0
    silent = outputs_with_paths(engine, weights, paths)["blocks.2"]
    np.testing.assert_array_equal(silent, nothing)
    assert relative_error(one, nothing) > 0.01


def outputs_with_paths(engine, weights, paths):
    model = build(engine, XCIT, weights, train=True)
    return call(lambda x: model.named_outputs(x, tensor(engine, paths)), engine, IMAGES)


@each_engine
def test_paths_are_drawn_in_training_alone(engine):
    architecture = replace(XCIT, drop_path=0.5)
    model = build(engine, architecture, reference_weights(architecture, 0))
    np.testing.assert_array_equal(call(model, engine, IMAGES), call(model, engine, IMAGES))
    model.train()
    assert relative_error(call(model, engine, IMAGES), call(model, engine, IMAGES)) > 1e-3


@pytest.mark.skipif(len(installed()) < 2, reason="compares two engines")
@pytest.mark.parametrize("architecture", [XCIT, REGNET], ids=["xcit", "regnet"])
def test_gradients_of_both_engines_agree(architecture):
    paths = None
    if architecture is XCIT:
        paths = (np.random.default_rng(0).random((3, 3, 4)) > 0.3).astype(np.float32) / 0.7
    weights = reference_weights(architecture, 0)
    results = {}
    for engine in installed():
        model = build(engine, architecture, weights, train=True)
        results[engine] = (*train_step(model, IMAGES, paths), weights_of(model))
    torch, paddle = results["torch"], results["paddle"]
    assert relative_error(paddle[0], torch[0]) < 1e-5
    assert set(paddle[1]) == set(torch[1]) == {n for n in weights if canonical.is_parameter(n)}
    largest = max(abs(g).max() for g in torch[1].values())
    for name, gradient in torch[1].items():
        # float32 rounding through batch statistics; gradients that are zero hold only rounding.
        scale = max(abs(gradient).max(), 1e-3 * largest)
        np.testing.assert_allclose(
            paddle[1][name], gradient, rtol=0, atol=2e-4 * scale, err_msg=name
        )
    for name, array in torch[2].items():
        np.testing.assert_allclose(paddle[2][name], array, rtol=1e-4, atol=1e-5, err_msg=name)


SIZES = [(2, 64, 64), (3, 37, 50), (1, 96, 48)]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["auto", "usual"])
def test_torch_exports_any_batch_and_size(form):
    torch = pytest.importorskip("torch")
    architecture = replace(XCIT, depth=2)
    model = build("torch", architecture, reference_weights(architecture, 0), attention=form)
    first = torch.from_numpy(IMAGES)
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(model, (first,), dynamic_shapes={"images": dynamic}).module()
    for batch, height, width in SIZES:
        images = reference_images((batch, 3, height, width), 1)
        assert relative_error(call(program, "torch", images), call(model, "torch", images)) < 1e-5


@pytest.mark.slow
def test_torch_compiles_whole():
    """One graph, forward and backward, without a break."""
    pytest.importorskip("torch")
    architecture = replace(XCIT, depth=1)
    weights = reference_weights(architecture, 0)
    plain = build("torch", architecture, weights, train=True)
    model = build("torch", architecture, weights, train=True)
    model.compile(fullgraph=True, backend="aot_eager")
    expected, found = train_step(plain, IMAGES), train_step(model, IMAGES)
    assert relative_error(found[0], expected[0]) < 1e-5
    for name, gradient in expected[1].items():
        assert relative_error(found[1][name], gradient) < 1e-3 or abs(gradient).max() < 1e-4, name


@pytest.mark.slow
@pytest.mark.parametrize("form", ["auto", "usual"])
def test_paddle_becomes_static_for_any_batch_and_size(form, tmp_path):
    paddle = pytest.importorskip("paddle")
    architecture = replace(XCIT, depth=1, cls_attn_layers=1)
    weights = reference_weights(architecture, 0)
    model, saved, static = (
        build("paddle", architecture, weights, attention=form) for _ in range(3)
    )
    spec = [paddle.static.InputSpec([None, 3, None, None], "float32")]
    paddle.jit.save(saved, str(tmp_path / "m"), spec)
    programs = [
        paddle.jit.load(str(tmp_path / "m")),
        paddle.jit.to_static(static, spec, full_graph=True),
    ]
    for batch, height, width in SIZES:
        images = reference_images((batch, 3, height, width), 1)
        expected = call(model, "paddle", images)
        for program in programs:
            assert relative_error(call(program, "paddle", images), expected) < 1e-5
