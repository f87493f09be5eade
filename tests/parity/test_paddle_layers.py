"""A model on Paddle is a layer like any other: hooked, wrapped, copied, cast, subclassed, saved."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest

from reference_rule import build, reference_images, reference_weights, relative_error, tensor
from xcite.errors import XciteError
from xcite.variants import XCiTArchitecture

paddle = pytest.importorskip("paddle")
nn, F = paddle.nn, paddle.nn.functional

SHAPE = XCiTArchitecture(8, 32, 2, 4, cls_attn_layers=2, num_classes=10)
IMAGES = reference_images((2, 3, 48, 64), 0)
# "usual" and "covariance" are both fast.
KINDS = {
    "plain": {"operators": "plain"},
    "usual": {"attention": "usual"},
    "covariance": {"attention": "covariance"},
}
each_kind = pytest.mark.parametrize("kind", KINDS)
LINEAR = [f"blocks.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")] + [
    f"cls_attn_blocks.1.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
]


def model_of(kind, shape=SHAPE, train=False):
    return build("paddle", shape, reference_weights(shape, 0), train=train, **KINDS[kind])


def logits(model, dtype="float32"):
    with paddle.no_grad():
        return model(tensor("paddle", IMAGES.astype(dtype))).numpy()


def gradients(model):
    model(tensor("paddle", IMAGES)).square().sum().backward()
    found = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    model.clear_gradients()
    return found


def replace_layer(model, name, make):
    parent, _, leaf = name.rpartition(".")
    owner = dict(model.named_sublayers())[parent]
    setattr(owner, leaf, make(getattr(owner, leaf)))


@each_kind
@pytest.mark.parametrize("register", ["register_forward_pre_hook", "register_forward_post_hook"])
def test_hooks_fire_on_every_layer(kind, register):
    model = model_of(kind)
    expected = logits(model)
    fired = []
    for name, layer in model.named_sublayers():
        if not isinstance(layer, nn.LayerList):  # which is called by nobody
            getattr(layer, register)(lambda *_, name=name: fired.append(name))
    found = logits(model)
    names = {n for n, layer in model.named_sublayers() if not isinstance(layer, nn.LayerList)}
    assert set(fired) == names
    assert relative_error(found, expected) < 1e-6


@each_kind
def test_a_hook_sees_and_changes_what_plain_operators_give(kind):
    """Layer by layer: one hooked branch alone is computed the plain way."""
    plain, model = model_of("plain"), model_of(kind)
    for name, layer in model.named_sublayers():
        if isinstance(layer, nn.LayerList):
            continue
        seen = []
        for each in (plain, model):
            (hooked,) = [lay for n, lay in each.named_sublayers() if n == name]

            def halve(_layer, _inputs, output, seen=seen):
                first = output[0] if isinstance(output, tuple) else output
                seen.append(first.numpy())
                return (first * 0.5, *output[1:]) if isinstance(output, tuple) else first * 0.5

            handle = hooked.register_forward_post_hook(halve)
            seen.append(logits(each))
            handle.remove()
        calls = len(seen) // 2
        for expected, found in zip(seen[:calls], seen[calls:], strict=True):
            # Sums of thousands of products, added in another order.
            if name == "pos_embeder":  # the same for every picture: fast operators keep one
                expected = expected[: len(found)]
            assert relative_error(found, expected) < 1e-5, name


class LoRA(nn.Layer):
    """A linear layer plus a product of two thin ones, as in the paper of Hu et al. 2021."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        into, out = base.weight.shape
        self.down = nn.Linear(into, 2, bias_attr=False)
        self.up = nn.Linear(2, out, bias_attr=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class LoRALinear(nn.Linear):
    """The same as a subclass with the weight in place, as PaddleNLP has it."""

    def __init__(self, base):
        super().__init__(*base.weight.shape)
        self.weight, self.bias = base.weight, base.bias
        self.down = nn.Linear(base.weight.shape[0], 2, bias_attr=False)
        self.up = nn.Linear(2, base.weight.shape[1], bias_attr=False)

    def forward(self, x):
        return super().forward(x) + self.up(self.down(x))


@each_kind
@pytest.mark.parametrize("wrap", [LoRA, LoRALinear])
@pytest.mark.parametrize("name", LINEAR)
def test_lora_acts_and_trains(kind, wrap, name):
    found, grads = {}, {}
    for each in ("plain", kind):
        paddle.seed(0)
        model = model_of(each)
        before = logits(model)
        replace_layer(model, name, wrap)
        found[each] = logits(model)
        assert relative_error(found[each], before) > 1e-4
        grads[each] = gradients(model)
    assert relative_error(found[kind], found["plain"]) < 1e-5
    assert f"{name}.up.weight" in grads[kind]
    for parameter in (f"{name}.up.weight", f"{name}.down.weight", "cls_token"):
        assert relative_error(grads[kind][parameter], grads["plain"][parameter]) < 1e-3, parameter


@each_kind
def test_lora_trains_alone(kind):
    """Frozen weights change no other gradient; Paddle's own LayerNorm would."""
    found = {}
    for frozen in (False, True):
        paddle.seed(0)
        model = model_of(kind, train=True)
        replace_layer(model, "blocks.0.attn.qkv", LoRA)
        for name, parameter in model.named_parameters():
            parameter.stop_gradient = frozen and ".up." not in name and ".down." not in name
        found[frozen] = gradients(model)
    assert set(found[True]) == {f"blocks.0.attn.qkv.{part}.weight" for part in ("up", "down")}
    for name, gradient in found[True].items():
        assert relative_error(gradient, found[False][name]) < 1e-4, name


@each_kind
@pytest.mark.parametrize("name", ["blocks.0.mlp.act", "blocks.0.local_mp.act"])
@pytest.mark.parametrize("other", [nn.ReLU, lambda: nn.GELU(approximate=True)])
def test_another_activation_is_used(kind, name, other):
    results = {}
    for each in ("plain", kind):
        model = model_of(each)
        before = logits(model)
        replace_layer(model, name, lambda _: other())
        results[each] = logits(model)
        assert not np.array_equal(results[each], before)
    assert relative_error(results[kind], results["plain"]) < 1e-5


@each_kind
def test_other_settings_of_a_layer_are_used(kind):
    """A dilated convolution, a linear layer without bias, a norm of another epsilon."""
    from xcite.engines.paddle.layers.layer_norm import LayerNorm

    changes = {
        "blocks.0.local_mp.conv2": lambda _: nn.Conv2D(32, 32, 3, padding=2, dilation=2, groups=32),
        "blocks.0.local_mp.conv1": lambda _: nn.Conv2D(32, 32, 3, padding=1),
        "blocks.0.attn.proj": lambda _: nn.Linear(32, 32, bias_attr=False),
        "blocks.0.mlp.fc2": lambda _: nn.Linear(128, 32, bias_attr=False),
        "cls_attn_blocks.0.norm2": lambda _: LayerNorm(32, 1e-3),
        "cls_attn_blocks.0.norm1": lambda _: nn.LayerNorm(32, 1e-3),
        "cls_attn_blocks.0.mlp.fc1": lambda _: nn.Linear(32, 128, bias_attr=False),
    }
    for name, make in changes.items():
        results = {}
        for each in ("plain", kind):
            model = model_of(each)
            paddle.seed(1)
            replace_layer(model, name, make)
            results[each] = logits(model)
        assert relative_error(results[kind], results["plain"]) < 1e-5, name


@each_kind
def test_a_replaced_forward_is_used(kind):
    model = model_of(kind)
    before = logits(model)
    for name in ("attn.qkv", "mlp.fc2", "local_mp.conv2", "mlp"):
        layer = model.blocks[1]
        for part in name.split("."):
            layer = getattr(layer, part)
        own = layer.forward
        layer.forward = lambda x, *rest, own=own: 2 * own(x, *rest)
        assert relative_error(logits(model), before) > 1e-3, name
        del layer.forward
        np.testing.assert_array_equal(logits(model), before)


@each_kind
def test_weight_norm(kind):
    model = model_of(kind)
    before = logits(model)
    for name in ("fc1", "fc2"):
        nn.utils.weight_norm(getattr(model.blocks[0].mlp, name), dim=1)
    assert relative_error(logits(model), before) < 1e-5
    assert abs(gradients(model)["blocks.0.mlp.fc2.weight_g"]).max() > 0
    for name in ("fc1", "fc2"):
        nn.utils.remove_weight_norm(getattr(model.blocks[0].mlp, name))
    assert relative_error(logits(model), before) < 1e-5


@each_kind
def test_copies_and_pickles(kind):
    model = model_of(kind)
    expected = logits(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [type(a) for a in twin.sublayers()] == [type(a) for a in model.sublayers()]
        np.testing.assert_array_equal(logits(twin), expected)
        with paddle.no_grad():
            twin.head.bias.set_value(twin.head.bias + 1)
        assert relative_error(logits(twin), expected) > 1e-3
        np.testing.assert_array_equal(logits(model), expected)


@each_kind
def test_states_move_between_operators(kind, tmp_path):
    paddle.save(model_of(kind).state_dict(), str(tmp_path / "m.pdparams"))
    for other in KINDS:
        model = build("paddle", SHAPE, None, **KINDS[other])
        missing, extra = model.set_state_dict(paddle.load(str(tmp_path / "m.pdparams")))
        assert (missing, extra) == ([], [])
        assert relative_error(logits(model), logits(model_of(kind))) < 1e-5


@each_kind
def test_float64(kind):
    """By `to`; Paddle 3.3's `astype` leaves parameters as they are."""
    exact = logits(model_of("plain").to(dtype="float64"), "float64")
    model = model_of(kind)
    expected = logits(model)
    found = logits(model.to(dtype="float64"), "float64")
    assert found.dtype == np.float64
    assert relative_error(found, exact) < 1e-12
    assert relative_error(found, expected) < 1e-5
    np.testing.assert_array_equal(logits(model.to(dtype="float32")), expected)


@pytest.mark.parametrize("train", [False, True])
def test_gradients_of_images(train):
    found = {}
    for kind in KINDS:
        images = tensor("paddle", IMAGES)
        images.stop_gradient = False
        model_of(kind, train=train)(images).square().sum().backward()
        found[kind] = images.grad.numpy()
    for gradient in found.values():
        # float32 rounding, amplified by batch statistics.
        assert relative_error(gradient, found["plain"]) < 1e-4


@each_kind
def test_subclass(kind):
    """Built on fast or plain operators alike: a subclass with layers of its own."""
    from xcite.engines.paddle import XCiT, load_weights
    from xcite.engines.paddle.fast import accelerate

    class Doubled(XCiT):
        def __init__(self, architecture):
            super().__init__(architecture)
            self.extra = nn.Linear(32, 32)

        def pooled(self, x):
            return 2 * super().pooled(x)

    model = Doubled(SHAPE)
    if kind != "plain":
        accelerate(model, KINDS[kind]["attention"])
    load_weights(model, reference_weights(SHAPE, 0))
    model.eval()
    model.head = nn.Identity()
    expected = model_of("plain")
    expected.head = nn.Identity()
    assert relative_error(logits(model), 2 * logits(expected)) < 1e-5
    assert "extra.weight" in model.state_dict()


@each_kind
@pytest.mark.parametrize(
    ("images", "what"),
    [
        (lambda: IMAGES, "ndarray"),
        (lambda: paddle.zeros([2, 3, 32, 32], "uint8"), "uint8"),
        (lambda: paddle.zeros([3, 32, 32]), r"\[3, 32, 32\]"),
        (lambda: paddle.zeros([2, 1, 32, 32]), r"\[2, 1, 32, 32\]"),
    ],
)
def test_other_images_are_refused(kind, images, what):
    model = model_of(kind)
    for method in (model, model.forward_features, model.forward_intermediates):
        with pytest.raises(XciteError, match=rf"\(batch, 3, height, width\).*{what}"):
            method(images())


@pytest.mark.slow
@each_kind
def test_programs_of_any_batch_and_size(kind, tmp_path):
    """Saved and converted; what was converted still computes its own way afterwards."""
    shape = replace(SHAPE, depth=1)
    model = model_of(kind, shape)
    before = logits(model)
    spec = [paddle.static.InputSpec([None, 3, None, None], "float32")]
    paddle.jit.save(model, str(tmp_path / "m"), spec)
    np.testing.assert_array_equal(logits(model), before)
    static = paddle.jit.to_static(model_of(kind, shape), spec, full_graph=True)
    for program in (paddle.jit.load(str(tmp_path / "m")), static):
        for batch, height, width in [(2, 64, 64), (3, 37, 50), (1, 96, 48)]:
            images = tensor("paddle", reference_images((batch, 3, height, width), 1))
            with paddle.no_grad():
                expected, found = model(images), program(images)
            assert relative_error(found.numpy(), expected.numpy()) < 1e-5


def test_only_what_is_touched_falls_back():
    """The other branches stay fast."""
    model = model_of("covariance")
    from xcite.engines.paddle.fast.blocks import is_fast

    block = model.blocks[0]
    block.attn.qkv.register_forward_post_hook(lambda *_: None)
    assert [is_fast(layer) for layer in (block.attn, block.local_mp, block.mlp)] == [False, 1, 1]
    assert is_fast(model.blocks[1].attn)
