"""PyTorch's compiled operators against its own in float64, and when they are used."""

import numpy as np
import pytest

from reference_rule import relative_error
from xcite.choices import default_choices
from xcite.variants import XCiTArchitecture

torch = pytest.importorskip("torch")

from xcite.engines.torch.fast import accelerate  # noqa: E402
from xcite.engines.torch.kernels import library, operators  # noqa: E402
from xcite.engines.torch.xcit import ConvPatchEmbed, XCABlock, XCiT  # noqa: E402

pytestmark = pytest.mark.skipif(
    not library.available(), reason="no C++ compiler, or another build of PyTorch"
)
F = torch.nn.functional
CHOICES = default_choices("torch").model_copy(update={"compiled": True, "slice_bytes": 400})
ARCHITECTURE = XCiTArchitecture(8, 32, 2, 4, num_classes=5)
NEEDED = 1e-5  # of the largest: sums of some hundred products in float32


def random(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def results(function, tensors, dtype):
    """Output of a function of tensors, and the gradients of a fixed sum of it."""
    tensors = [t.detach().to(dtype).requires_grad_() for t in tensors]
    output = function(*tensors)
    (output * random(*output.shape, seed=9).to(dtype)).sum().backward()
    return [output.detach(), *(t.grad for t in tensors)]


def agree(compiled, plain, *tensors, needed=NEEDED):
    found = results(compiled, tensors, torch.float32)
    for ours, theirs in zip(found, results(plain, tensors, torch.float64), strict=True):
        assert ours.dtype == torch.float32
        # where all is exactly zero, such as by one token, rounding of numbers of about 1 is left
        most = max(1.0, float(theirs.abs().max()))
        assert (ours - theirs).abs().max() < needed * most


@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (2, 128, 65, 3)])
def test_gelu(shape):
    agree(operators.Gelu.apply, F.gelu, random(*shape, scale=3.0))


def test_gelu_of_any_order_of_axes():
    x = random(2, 6, 5, 3)
    agree(
        lambda x: operators.Gelu.apply(x.to(memory_format=torch.channels_last)),
        lambda x: F.gelu(x).permute(0, 1, 2, 3),
        x,
    )
    turned = x.float().transpose(0, 3)
    y = operators.Gelu.apply(turned)
    assert y.stride() == turned.stride()
    torch.testing.assert_close(y, F.gelu(turned), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 31, 32, 1000])
def test_gelu_again(rows):
    hidden, grad = random(rows, 12), random(rows, 12, seed=1)
    slope = grad.float()
    activated, sums = operators.activate_back(hidden.float(), slope)
    expected = torch.ops.aten.gelu_backward(grad, hidden)
    for ours, theirs in ((activated, F.gelu(hidden)), (slope, expected), (sums, expected.sum(0))):
        assert (ours - theirs).abs().max() < NEEDED * max(1.0, float(theirs.abs().max()))


# a band is 8 rows: fewer, just so many, one more, several; a single column, row and token
@pytest.mark.parametrize("grid", [(1, 1), (1, 9), (5, 1), (8, 4), (9, 5), (27, 3)])
@pytest.mark.parametrize("batch", [True, False], ids=["of the batch", "given"])
def test_local(grid, batch):
    channels = 20
    mean, variance = random(channels, seed=5), 0.5 + random(channels, seed=6) ** 2
    kept = (mean.float(), variance.float())

    def compiled(x, *weights):
        return operators.Local.apply(x, grid, operators.Statistics(*kept, batch, 1e-5), *weights)

    def plain(x, *weights):
        statistics = (None, None) if batch else (mean, variance)
        return operators.plain_local(x, grid, statistics, 1e-5, *weights)

    agree(
        *(compiled, plain),
        random(3, grid[0] * grid[1], channels),
        *(random(channels, 1, 3, 3, seed=1), random(channels, seed=2)),
        *(1 + random(channels, seed=3), random(channels, seed=4)),
        *(random(channels, 1, 3, 3, seed=7), random(channels, seed=8)),
        # three values of a channel may all but agree: the deviation divides then
        needed=1e-4 if grid == (1, 1) else NEEDED,
    )


@pytest.mark.parametrize("batch", [True, False], ids=["of the batch", "given"])
def test_second_derivatives(batch):
    statistics = operators.Statistics(torch.zeros(4), torch.ones(4), batch, 1e-5)
    given = (random(2, 6, 4), random(4, 1, 3, 3), *(random(4, seed=i) for i in (1, 2, 3)))
    given = (*given, random(4, 1, 3, 3, seed=4), random(4, seed=5))

    def plain(x, *weights):
        kept = (None, None) if batch else (torch.zeros(4).double(), torch.ones(4).double())
        return operators.plain_local(x, (2, 3), kept, 1e-5, *weights)

    def curvature(function, dtype):
        tensors = [t.to(dtype).requires_grad_() for t in given]
        first = torch.autograd.grad((function(*tensors) ** 2).sum(), tensors[:2], create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in first), tensors[:2])

    found = curvature(
        lambda x, *weights: operators.Local.apply(x, (2, 3), statistics, *weights), torch.float32
    )
    for ours, theirs in zip(found, curvature(plain, torch.float64), strict=True):
        assert relative_error(ours.numpy(), theirs.numpy()) < 1e-3  # squares of float32 gradients


def test_shapes_that_do_not_fit_are_refused():
    built = model(CHOICES, train=False)
    lpi = built.blocks[0].local_mp
    with pytest.raises(ValueError, match="do not fit"):
        lpi.branch(random(2, 12, 32).float(), 4, 5)
    lpi.bn = torch.nn.BatchNorm2d(8).eval()
    with pytest.raises(ValueError, match="do not fit"):
        lpi.branch(random(2, 12, 32).float(), 3, 4)
    with pytest.raises(ValueError, match="do not fit"):
        operators.activate(torch.ones(3, 8), torch.ones(4))


def test_statistics_of_another_precision_are_left_to_pytorch():
    lpi = model(CHOICES, train=False).blocks[0].local_mp
    lpi.bn.running_mean = lpi.bn.running_mean.double()
    assert not lpi._compiles(random(2, 12, 32).float())


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


def model(choices, dtype=torch.float32, train=True):
    built = XCiT(ARCHITECTURE).to(dtype)
    with torch.no_grad():
        for i, parameter in enumerate(built.parameters()):
            parameter.copy_(random(*parameter.shape, seed=i, scale=0.2))
    built.train(train)
    return built if choices is None else accelerate(built, "auto", choices)


def trained(choices, dtype=torch.float32, frozen=""):
    built = model(choices, dtype)
    for name, parameter in built.named_parameters():
        parameter.requires_grad_(not (frozen and frozen in name))
    images = random(3, 3, 40, 32).to(dtype).requires_grad_()
    logits = built(images)
    (logits * random(*logits.shape, seed=7).to(dtype)).sum().backward()
    grads = {n: p.grad for n, p in built.named_parameters() if p.grad is not None}
    return {
        "logits": logits.detach(),
        "images": images.grad,
        **grads,
        **dict(built.named_buffers()),
    }


USED = {"gelu", "gelu_back", "activate", "activate_back", "layer_norm_back", "local", "local_back"}


def test_a_model_uses_them_with_the_same_numbers(called):
    found, expected = trained(CHOICES), trained(None, torch.float64)
    assert set(called) == USED
    for name, value in expected.items():
        if value.numel() and value.is_floating_point() and float(value.abs().max()):
            assert relative_error(found[name].double().numpy(), value.numpy()) < 1e-3, name
        else:
            assert torch.equal(found[name], value) or float(found[name].abs().max()) < 1e-5, name


def test_without_being_chosen_or_in_other_precisions_they_are_not_used(called):
    trained(CHOICES.model_copy(update={"compiled": False}))
    trained(CHOICES, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        model(CHOICES)(random(2, 3, 32, 32).float())
    assert called == []


def test_what_is_not_as_built_is_called(called):
    built = model(CHOICES, train=False)
    block: XCABlock = built.blocks[0]
    seen = []
    block.local_mp.conv1.register_forward_hook(lambda *_: seen.append("conv1"))
    built.blocks[1].local_mp.act = torch.nn.ReLU()
    with torch.no_grad():
        built(random(2, 3, 32, 32).float())
    assert seen == ["conv1"]
    assert "local" not in called


def test_frozen_weights_get_no_gradient_and_change_no_other():
    whole, found = trained(CHOICES), trained(CHOICES, frozen="local_mp.conv1")
    assert not any("local_mp.conv1" in name for name in found)
    for name, value in found.items():
        torch.testing.assert_close(value, whole[name], rtol=1e-5, atol=1e-6)


def test_statistics_are_counted_as_batch_norm_does():
    ours, theirs = model(CHOICES), model(CHOICES.model_copy(update={"compiled": False}))
    for _ in range(2):
        for one in (ours, theirs):
            one(random(2, 3, 32, 32).float())
    for (name, found), (_, expected) in zip(
        ours.named_buffers(), theirs.named_buffers(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=name)


def test_any_count_of_threads_gives_the_same_bits():
    found, before = [], torch.get_num_threads()
    weights = (random(8, 1, 3, 3), *(random(8, seed=i) for i in (1, 2, 3)))
    weights = [t.float() for t in (*weights, random(8, 1, 3, 3, seed=4), random(8, seed=5))]
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            statistics = operators.Statistics(torch.zeros(8), torch.ones(8), True, 1e-5)
            x = random(3, 90, 8).float().requires_grad_()
            y = operators.Local.apply(x, (9, 10), statistics, *weights)
            y.square().sum().backward()
            found.append((y.detach(), x.grad))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_nothing_and_nan_go_through():
    gelu = accelerate(torch.nn.Sequential(torch.nn.GELU()), "auto", CHOICES)
    assert gelu(torch.empty(0, 4)).shape == (0, 4)
    x = random(3, 8).float()
    x[1, 2] = torch.nan
    assert torch.equal(gelu(x).isnan(), x.isnan())


def test_a_stem_lies_channels_last(called):
    stem = accelerate(ConvPatchEmbed(ARCHITECTURE), "auto", CHOICES)
    tokens, height, width = stem(torch.from_numpy(np.ones((2, 3, 32, 40), np.float32)))
    assert tokens.shape == (2, height * width, 32)
    assert "gelu" in called
    assert tokens.is_contiguous()
