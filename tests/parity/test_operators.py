"""Every fast operator computes what its plain one does: values, and gradients of all there is.

The plain ones are held by the official code's numbers (test_reference_outputs.py).
"""

import numpy as np
import pytest

from reference_rule import build, reference_images, reference_weights, tensor
from xcite.engines import installed
from xcite.variants import XCiTArchitecture

BATCH, HEIGHT, WIDTH = 3, 8, 12
DRAWS = np.random.default_rng(0)
IMAGES = reference_images((BATCH, 3, 8 * HEIGHT, 8 * WIDTH), 0)
TOKENS = DRAWS.standard_normal((BATCH, HEIGHT * WIDTH, 64))
WITH_CLS = DRAWS.standard_normal((BATCH, 1 + HEIGHT * WIDTH, 64))
# Of three pictures and three branches some are dropped.
PATHS = np.array([[2, 0, 2], [0, 2, 2], [2, 2, 0]], np.float64)
# A part of the model, and what it is called with: arrays get a gradient, numbers stay as they are.
OPERATORS = {
    "patch_embed": (IMAGES,),
    "pos_embeder": (BATCH, HEIGHT, WIDTH),
    "blocks.0.attn": (TOKENS,),
    "blocks.0.local_mp": (TOKENS, HEIGHT, WIDTH),
    "blocks.0.mlp": (TOKENS,),
    "blocks.0": (TOKENS, HEIGHT, WIDTH),
    "cls_attn_blocks.0.attn": (WITH_CLS,),
    "cls_attn_blocks.0.mlp": (WITH_CLS,),
    "cls_attn_blocks.0": (WITH_CLS,),
    "": (IMAGES,),
}
ARCHITECTURES = {
    "usual fields": XCiTArchitecture(8, 64, 2, 4, num_classes=5),
    "other fields": XCiTArchitecture(
        8, 64, 2, 4, num_classes=5, tokens_norm=False, qkv_bias=False, attention_scale=0.3
    ),
    "strides": XCiTArchitecture(8, 64, 1, 4, num_classes=5, stem_strides=(1, 2, 2, 2)),
}
FORMS = ("usual", "covariance")


def model_of(engine, architecture, train=True, **options):
    """A model in float64."""
    weights = reference_weights(architecture, 0)
    if engine == "torch":
        return build(engine, architecture, weights, train=train, **options).double()
    import paddle

    paddle.set_default_dtype("float64")
    try:
        return build(engine, architecture, weights, train=train, **options)
    finally:
        paddle.set_default_dtype("float32")


def part_of(model, name):
    named = model.named_modules() if model.engine == "torch" else model.named_sublayers()
    return {"": model, **dict(named)}[name]


def input_of(engine, value):
    if not isinstance(value, np.ndarray):
        return value
    given = tensor(engine, value.astype(np.float64))
    if engine == "torch":
        return given.requires_grad_()
    given.stop_gradient = False
    return given


def values_and_gradients(engine, part, inputs, paths=None):
    """Output, and gradients by name, those of inputs by their place; in float64."""
    given = [input_of(engine, value) for value in inputs]
    scales = [] if paths is None else [tensor(engine, paths)]
    output = part(*given, *scales)
    output = output[0] if isinstance(output, tuple) else output
    if output.ndim == 4:  # positions: fast operators give one encoding for all pictures
        output = output + tensor(engine, np.zeros((BATCH, 1, 1, 1)))
    cotangent = np.random.default_rng(1).standard_normal(output.shape)
    (output * tensor(engine, cotangent)).sum().backward()
    sources = {str(i): value for i, value in enumerate(given) if not isinstance(value, int)}
    sources |= dict(part.named_parameters())
    gradients = {n: p.grad.numpy().copy() for n, p in sources.items() if p.grad is not None}
    return output.detach().numpy(), gradients


def assert_equal(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-10 * abs(expected[0]).max())
    assert set(found[1]) >= {name for name, g in expected[1].items() if abs(g).max() > 1e-9}
    largest = max(abs(g).max() for g in expected[1].values())
    for name, gradient in expected[1].items():
        # The key bias of class attention has no gradient: only rounding is left there.
        scale = max(abs(gradient).max(), 1e-6 * largest)
        np.testing.assert_allclose(
            found[1].get(name, 0.0), gradient, rtol=0, atol=1e-10 * scale, err_msg=name
        )


@pytest.mark.parametrize("engine", installed())
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", OPERATORS)
def test_a_fast_operator_is_the_plain_one(engine, form, architecture, name):
    shape = ARCHITECTURES[architecture]
    plain = part_of(model_of(engine, shape, operators="plain"), name)
    fast = part_of(model_of(engine, shape, attention=form), name)
    assert type(fast).__bases__ == (type(plain),)
    paths = [None, PATHS] if name == "blocks.0" else [None]
    for scales in paths:
        expected = values_and_gradients(engine, plain, OPERATORS[name], scales)
        found = values_and_gradients(engine, fast, OPERATORS[name], scales)
        assert_equal(found, expected)


@pytest.mark.parametrize("engine", installed())
@pytest.mark.parametrize("form", FORMS)
def test_evaluation_and_dropped_paths(engine, form):
    shape = ARCHITECTURES["usual fields"]
    paths = np.stack([PATHS, PATHS[::-1]])
    for train, scales in ((False, None), (True, paths)):
        plain = model_of(engine, shape, train, operators="plain")
        fast = model_of(engine, shape, train, attention=form)
        assert_equal(
            values_and_gradients(engine, fast, (IMAGES,), scales),
            values_and_gradients(engine, plain, (IMAGES,), scales),
        )
        for name, buffer in fast.named_buffers():
            expected = dict(plain.named_buffers())[name]
            np.testing.assert_allclose(buffer.numpy(), expected.numpy(), rtol=1e-12, atol=1e-12)
