"""Operators compiled on this machine against Paddle's own in float64, and when they are used."""

import threading

import numpy as np
import pytest

from reference_rule import relative_error
from xcite.choices import default_choices
from xcite.variants import XCiTArchitecture

paddle = pytest.importorskip("paddle")

from xcite.engines.paddle.fast import accelerate  # noqa: E402
from xcite.engines.paddle.kernels import library, operators  # noqa: E402
from xcite.engines.paddle.layers.layer_norm import LayerNorm  # noqa: E402
from xcite.engines.paddle.xcit import LPI, XCA, Mlp  # noqa: E402

pytestmark = pytest.mark.skipif(
    not library.available(), reason="no C++ compiler, or another build of Paddle"
)
F = paddle.nn.functional
CHOICES = default_choices("paddle").model_copy(update={"slice_bytes": 400})  # slices of 100 tokens
NEEDED = 1e-5  # of the largest: sums of some hundred products in float32


def random(*shape, seed=0, scale=1.0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape) * scale


def results(function, arrays, dtype):
    """Outputs of a function of tensors, and the gradients of a fixed sum of them."""
    tensors = [paddle.to_tensor(a.astype(dtype), stop_gradient=False) for a in arrays]
    outputs = function(*tensors)
    outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    total = sum(
        (output * paddle.to_tensor(random(*output.shape, seed=i).astype(dtype))).sum()
        for i, output in enumerate(outputs)
    )
    total.backward()
    return [*(o.numpy() for o in outputs), *(t.grad.numpy() for t in tensors)]


def agree(compiled, plain, *arrays, needed=NEEDED):
    found, expected = results(compiled, arrays, "float32"), results(plain, arrays, "float64")
    for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours.dtype == np.float32
        assert ours.shape == theirs.shape
        # where all is exactly zero, such as by one token, rounding of numbers of about 1 is left
        most = max(1.0, np.abs(theirs).max())
        assert np.abs(ours - theirs).max() < needed * most, (i, np.abs(ours - theirs).max() / most)


@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (2, 128, 65, 3)])
def test_gelu(shape):
    agree(operators.Gelu.apply, F.gelu, random(*shape, scale=3.0))


# the last ones are of several bands: what a row sees takes more than a fourth of 4 MiB
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (9, 4), (3, 5000)])
def test_convolution(stride, size):
    x, weight = random(2, 10, *size), random(6, 10, 3, 3)
    agree(
        lambda x, w: operators.Convolution.apply(x, w, stride),
        lambda x, w: F.conv2d(x, w, stride=stride, padding=1),
        *(x, weight),
    )


@pytest.mark.parametrize("shape", [(1, 1, 4), (2, 3, 20), (3, 333, 64), (1, 9000, 17)])
def test_layer_norm(shape):
    width = shape[-1]
    agree(
        lambda x, w, b: operators.LayerNorm.apply(x, w, b, 1e-6),
        lambda x, w, b: F.layer_norm(x, [width], w, b, 1e-6),
        *(10 + 3 * random(*shape), 1 + random(width), random(width, seed=1)),
    )


# a band is 8 rows: fewer, just so many, one more, several; a single column, row and token
GRIDS = [(1, 1), (1, 9), (5, 1), (8, 4), (9, 5), (27, 3)]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("batch", [True, False], ids=["of the batch", "given"])
def test_local(grid, batch):
    pictures, channels = 3, 20
    mean, variance = random(channels, seed=5), 0.5 + random(channels, seed=6) ** 2
    kept = []

    def compiled(x, *weights):
        statistics = [paddle.to_tensor(a.astype("float32")) for a in (mean, variance)]
        kept.extend(statistics)
        given = operators.Statistics(*statistics, batch, 1e-5)
        return operators.Local.apply(x, *weights, grid, given)

    def plain(x, w1, b1, scale, shift, w2, b2):
        x = x.transpose([0, 2, 1]).reshape([pictures, channels, *grid])
        x = F.gelu(F.conv2d(x, w1, b1, padding=1, groups=channels))
        if batch:
            middle = x.mean([0, 2, 3])
            spread = x.var([0, 2, 3], unbiased=False)
            kept.extend([middle, spread])
        else:
            middle, spread = paddle.to_tensor(mean), paddle.to_tensor(variance)
        as_map = [1, -1, 1, 1]
        x = (x - middle.reshape(as_map)) / (spread.reshape(as_map) + 1e-5).sqrt()
        x = x * scale.reshape(as_map) + shift.reshape(as_map)
        x = F.conv2d(x, w2, b2, padding=1, groups=channels)
        return x.flatten(2).transpose([0, 2, 1])

    agree(
        *(compiled, plain),
        random(pictures, grid[0] * grid[1], channels),
        *(random(channels, 1, 3, 3), random(channels)),
        *(1 + random(channels, seed=1), random(channels, seed=2)),
        *(random(channels, 1, 3, 3, seed=3), random(channels, seed=4)),
        # three values of a channel may all but agree: the deviation divides then
        needed=1e-4 if grid == (1, 1) else NEEDED,
    )
    if batch:
        for ours, theirs in zip(kept[:2], kept[2:], strict=True):
            assert relative_error(ours.numpy(), theirs.numpy()) < NEEDED


def test_statistics_far_from_zero_lose_nothing():
    """A mean a thousand times the deviation: the squared mean would leave nothing of it."""
    x = paddle.to_tensor(random(2, 64, 16, scale=0.01).astype("float32"))
    weight, bias = paddle.zeros([16, 1, 3, 3]), paddle.full([16], 10.0)
    weight[:, :, 1, 1] = 1.0
    zeros, ones = paddle.zeros([16]), paddle.ones([16])
    mean, variance = paddle.empty([16]), paddle.empty([16])
    given = operators.Statistics(mean, variance, True, 1e-5)
    operators.Local.apply(x, weight, bias, ones, zeros, weight, zeros, (8, 8), given)
    expected = (x.astype("float64") + 10).var([0, 1], unbiased=False)
    assert relative_error(variance.numpy(), expected.numpy()) < 2e-3


@pytest.mark.parametrize("rows", [1, 100, 250])
def test_mlp(rows):
    agree(
        lambda *t: operators.Mlp.apply(*t, True, 400),
        lambda x, w1, b1, w2, b2: F.gelu(x @ w1 + b1) @ w2 + b2,
        *(random(2, rows, 12), random(12, 50), random(50), random(50, 12), random(12)),
    )


@pytest.mark.parametrize("pictures", [1, 3, 9])
def test_products(pictures):
    a, b = random(pictures, 33, 20), random(pictures, 20, 7)
    offset = random(pictures, 1, 7)
    agree(operators.Products.apply, lambda a, b, c: a @ b + c, a, b, offset)
    agree(lambda a, b: operators.Products.apply(a, b, None), paddle.matmul, a, b)
    agree(operators.linear, F.linear, a, random(20, 11), random(11))
    agree(
        operators.Gram.apply,
        lambda x: (x.transpose([0, 2, 1]) @ x, x.sum(1, keepdim=True)),
        a,
    )


@pytest.mark.parametrize(("tokens", "width"), [(1, 3), (70, 24), (300, 48)])
def test_attention(tokens, width):
    heads, pictures = 3, 2
    channels = heads * width

    def plain(qkv, temperature):
        split = qkv.reshape([pictures, tokens, 3, heads, width]).transpose([2, 0, 3, 4, 1])
        q, k, v = split.unbind(0)
        q, k = F.normalize(q, axis=-1), F.normalize(k, axis=-1)
        weights = F.softmax((q @ k.transpose([0, 1, 3, 2])) * temperature, axis=-1)
        return (weights @ v).flatten(1, 2).transpose([0, 2, 1])

    qkv, temperature = random(pictures, tokens, 3 * channels), 1 + random(heads, 1, 1) ** 2
    agree(operators.Attend.apply, plain, qkv, temperature)
    qkv[:, :, 0] = 0.0  # a channel of q without length: bounded, and no gradient through its length
    found, expected = (
        results(f, (qkv, temperature), kind)
        for f, kind in ((operators.Attend.apply, "float32"), (plain, "float64"))
    )
    assert relative_error(found[0], expected[0]) < NEEDED


def part(kind, choices, dtype="float32", train=True):
    """A layer whose weights are all drawn, and its inputs besides tokens."""
    architecture = XCiTArchitecture(8, 32, 2, 4)
    layer = LayerNorm(32, 1e-6) if kind is LayerNorm else kind(32 if kind is LPI else architecture)
    for i, parameter in enumerate(layer.parameters()):
        parameter.set_value(paddle.to_tensor(random(*parameter.shape, seed=i).astype("float32")))
    if choices is not None:
        accelerate(layer, "auto", choices)
    (layer.train if train else layer.eval)()
    return layer.to(dtype=dtype), (9, 8) if kind is LPI else ()


def trained(kind, choices, dtype="float32", frozen=()):
    layer, more = part(kind, choices, dtype)
    for name, parameter in layer.named_parameters():
        parameter.stop_gradient = name in frozen
    x = paddle.to_tensor(random(3, 72, 32).astype(dtype), stop_gradient=False)
    y = layer(x, *more)
    (y * paddle.to_tensor(random(*y.shape, seed=7).astype(dtype))).sum().backward()
    grads = {n: None if p.grad is None else p.grad.numpy() for n, p in layer.named_parameters()}
    buffers = {n: b.numpy() for n, b in layer.named_buffers()}
    return {"y": y.numpy(), "x": x.grad.numpy(), **grads, **buffers}


KINDS = [LayerNorm, LPI, Mlp, XCA]


@pytest.mark.parametrize("kind", KINDS)
def test_layers(kind):
    found, expected = trained(kind, CHOICES), trained(kind, None, "float64")
    for name, value in expected.items():
        if value is not None and value.size:
            assert relative_error(found[name].astype("float64"), value) < 5e-5, name


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(kind):
    names = [name for name, _ in part(kind, None)[0].named_parameters() if "_" not in name]
    whole, found = trained(kind, CHOICES), trained(kind, CHOICES, frozen=names[:1])
    assert found.pop(names[0]) is None
    for name, value in found.items():
        if value is not None:
            np.testing.assert_allclose(value, whole[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [LayerNorm, LPI])
def test_any_count_of_threads_gives_the_same_bits(kind):
    found = []
    try:
        for threads in (1, 2, 3):
            paddle.base.core.set_num_threads(threads)
            found.append(trained(kind, CHOICES))
    finally:
        paddle.base.core.set_num_threads(1)
    for name, value in found[0].items():
        for other in found[1:]:
            np.testing.assert_array_equal(other[name], value, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_of_python_may_compute_at_once(kind):
    paddle.base.core.set_num_threads(2)
    layer, more = part(kind, CHOICES, train=False)
    x = [paddle.to_tensor(random(2, 72, 32, seed=i).astype("float32")) for i in range(4)]
    found = [None] * len(x)

    def compute(i):
        with paddle.no_grad():
            for _ in range(20):
                found[i] = layer(x[i], *more).numpy()

    try:
        expected = [layer(one, *more).numpy() for one in x]
        workers = [threading.Thread(target=compute, args=[i]) for i in range(len(x))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        paddle.base.core.set_num_threads(1)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_not_swallowed(kind):
    layer, more = part(kind, CHOICES, train=False)
    array = random(1, 72, 32).astype("float32")
    array[0, 40, 5] = np.nan
    with paddle.no_grad():
        assert np.isnan(layer(paddle.to_tensor(array), *more).numpy()).any()


def test_a_second_derivative_is_refused():
    x = paddle.to_tensor(random(5, 8).astype("float32"), stop_gradient=False)
    y = operators.Gelu.apply(x)
    # Paddle wraps the error in one of its own.
    with pytest.raises(Exception, match="no second derivative"):
        paddle.grad([y.sum()], [x], create_graph=True)


@pytest.mark.parametrize(
    ("operator", "shapes", "more"),
    [
        (operators.LayerNorm.apply, ([2, 8], [7], [8]), [1e-6]),
        (operators.Mlp.apply, ([2, 8], [8, 16], [16], [16, 7], [7]), [True, 400]),
        (operators.Mlp.apply, ([2, 7], [8, 16], [16], [16, 8], [8]), [True, 400]),
        (operators.Products.apply, ([2, 5, 4], [2, 5, 3]), [None]),
        (operators.Products.apply, ([2, 5, 4], [1, 4, 3], [2, 1, 3]), []),
        (operators.linear, ([2, 5, 4], [4, 3], [4]), []),
        (operators.Attend.apply, ([2, 5, 25], [2, 1, 1]), []),
    ],
)
def test_shapes_that_do_not_fit_are_refused(operator, shapes, more):
    with pytest.raises(ValueError, match="do not fit"):
        operator(*(paddle.ones(shape) for shape in shapes), *more)


@pytest.fixture
def called(monkeypatch):
    """Names of the compiled operators that were called."""
    names = []
    call = operators.call

    def noting(name, *arguments):
        names.append(name)
        call(name, *arguments)

    monkeypatch.setattr(operators, "call", noting)
    return names


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_used_where_they_can_be(kind, called):
    trained(kind, CHOICES)
    assert called
    called.clear()
    trained(kind, CHOICES.model_copy(update={"compiled": False}))
    trained(kind, CHOICES, "float64")
    assert called == []


def test_tokens_may_lie_in_any_way():
    array = random(32, 72, 3).astype("float32")
    turned = paddle.to_tensor(array).transpose([2, 1, 0])
    dense = paddle.to_tensor(np.ascontiguousarray(array.T))
    for kind in KINDS:
        layer, more = part(kind, CHOICES, train=False)
        with paddle.no_grad():
            np.testing.assert_array_equal(layer(turned, *more).numpy(), layer(dense, *more).numpy())
