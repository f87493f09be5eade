"""PyTorch's linear maps through either library are the same map."""

import functools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from xcite.choices import default_choices  # noqa: E402
from xcite.engines.torch.fast import matmul as maps  # noqa: E402

WAYS = {
    way: default_choices("torch").model_copy(update={"products": way})
    for way in ("matrix", "convolution")
}

# 160 rows are sixteen pictures, 161 one; 3 are too few for a convolution.
ROWS = (160, 161, 3)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_linear_and_its_gradients(rows, bias, way):
    draws = np.random.default_rng(0)
    shapes = ((1, rows, 24), (40, 24), (40,))
    exact = [torch.tensor(draws.standard_normal(shape), requires_grad=True) for shape in shapes]
    ours = [t.detach().float().requires_grad_() for t in exact]
    expected = torch.nn.functional.linear(exact[0], exact[1], exact[2] if bias else None)
    y = maps.linear(ours[0], ours[1], ours[2] if bias else None, WAYS[way])
    cotangent = torch.tensor(draws.standard_normal(expected.shape))
    (expected * cotangent).sum().backward()
    (y * cotangent.float()).sum().backward()
    direct = maps.weight_gradient(cotangent.float()[0], ours[0].detach()[0], WAYS[way])
    pairs = [(y, expected), (direct, exact[1].grad)]
    pairs += [(o.grad, e.grad) for o, e in zip(ours, exact, strict=True) if e.grad is not None]
    for got, want in pairs:
        assert got.shape == want.shape
        # sums of at most 161 products in float32: 161 * 2^-24 = 1e-5 of the largest
        error = (got.double() - want).abs().max() / want.abs().max()
        assert error < 1e-5


def test_a_convolution_computes_where_it_is_chosen(monkeypatch):
    called = []
    convolution = torch.nn.functional.conv2d
    monkeypatch.setattr(
        torch.nn.functional, "conv2d", lambda *a: called.append(a[0].shape) or convolution(*a)
    )
    weight = torch.zeros(8, 8)
    linear = functools.partial(maps.linear, bias=None, choices=WAYS["convolution"])
    for rows in ROWS:
        linear(torch.zeros(rows, 8), weight)
        maps.linear(torch.zeros(rows, 8), weight, None, WAYS["matrix"])
    linear(torch.zeros(160, 8).double(), weight.double())
    linear(torch.zeros(8, 160).t(), weight)  # not as it lies in memory
    with torch.autocast("cpu", torch.bfloat16):
        linear(torch.zeros(160, 8), weight)
    assert called == [(16, 8, 10, 1), (1, 8, 161, 1)]


@pytest.mark.parametrize("least", [0, 1 << 60], ids=["convolutions", "batched products"])
def test_products_of_each_picture_and_their_gradients(least):
    choices = WAYS["convolution"].model_copy(update={"apart_from": least})
    draws = np.random.default_rng(0)
    shapes = ((3, 160, 24), (3, 24, 40), (3, 1, 40))
    exact = [torch.tensor(draws.standard_normal(shape), requires_grad=True) for shape in shapes]
    ours = [t.detach().float().requires_grad_() for t in exact]
    expected, y = exact[0] @ exact[1] + exact[2], maps.linear_of_each(*ours, choices)
    cotangent = torch.tensor(draws.standard_normal(expected.shape))
    (expected * cotangent).sum().backward()
    (y * cotangent.float()).sum().backward()
    pairs = [(y, expected), *((o.grad, e.grad) for o, e in zip(ours, exact, strict=True))]
    tokens = exact[0].detach()
    pairs += [(maps.gram_of_each(ours[0].detach(), choices), tokens.transpose(1, 2) @ tokens)]
    for got, want in pairs:
        assert got.shape == want.shape
        assert (got.double() - want).abs().max() / want.abs().max() < 1e-5  # as above
