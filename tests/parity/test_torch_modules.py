"""On PyTorch a model is a module as any other, with plain operators and with fast ones."""

import copy
import io
import pickle

import numpy as np
import pytest

import xcite
from reference_rule import build, reference_images, reference_weights
from xcite.errors import XciteError
from xcite.variants import XCiTArchitecture

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.modules import module as all_modules  # noqa: E402

ARCHITECTURE = XCiTArchitecture(8, 32, 2, 4, num_classes=10)
WEIGHTS = reference_weights(ARCHITECTURE, 0)
IMAGES = torch.from_numpy(reference_images((3, 3, 96, 64), 0))  # 96 tokens: the covariance form
OTHER = torch.from_numpy(reference_images((5, 3, 37, 50), 1))
KINDS = {
    "plain": {"operators": "plain"},
    "fast": {},
    "fast, usual form": {"attention": "usual"},
}
each_kind = pytest.mark.parametrize("kind", KINDS)
LINEAR = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def model_of(kind, *, train=False):
    return build("torch", ARCHITECTURE, WEIGHTS, train=train, **KINDS[kind])


@pytest.fixture(scope="module")
def logits():
    """What every kind of model gives."""
    with torch.no_grad():
        return model_of("plain")(IMAGES)


def assert_close(found, expected, tolerance=1e-5):
    """Rounding of float32 is 1e-6 of the largest; other tolerances say why where they stand."""
    assert found.shape == expected.shape
    difference = (found.double() - expected.double()).abs().max()
    assert difference < tolerance * expected.abs().max()


def callable_modules(model):
    """By name; a list of modules is called by nobody."""
    return {n: m for n, m in model.named_modules() if not isinstance(m, nn.ModuleList)}


# ---- hooks ---------------------------------------------------------------------------------------


@each_kind
def test_forward_hooks_fire_on_all_modules_at_once(kind, logits):
    model = model_of(kind)
    fired = set()
    for name, module in callable_modules(model).items():
        module.register_forward_hook(lambda *call, name=name: fired.add(name))
    assert_close(model(IMAGES), logits)
    assert fired == set(callable_modules(model))


@pytest.mark.parametrize("name", callable_modules(model_of("plain")))
def test_a_hook_alone_sees_what_the_plain_module_gives(name, logits):
    seen = {}
    for kind in KINDS:
        model, calls = model_of(kind), []
        hook = model.get_submodule(name).register_forward_hook(
            lambda m, i, o, to=calls: to.append(o)
        )
        assert_close(model(IMAGES), logits)
        seen[kind] = [output[0] if isinstance(output, tuple) else output for output in calls]
        hook.remove()
        model(IMAGES)
        assert len(seen[kind]) == len(calls) > 0
    for kind in KINDS:
        for found, expected in zip(seen[kind], seen["plain"], strict=True):
            # The encoding of positions is the same for all pictures, which one suffices for.
            assert_close(found.expand_as(expected), expected)


@each_kind
@pytest.mark.parametrize("register", ["register_forward_pre_hook", "register_full_backward_hook"])
@pytest.mark.parametrize("name", [f"blocks.0.{n}" for n in (*LINEAR, "local_mp.conv2", "norm2")])
def test_other_hooks_fire(kind, register, name):
    model, fired = model_of(kind), []
    getattr(model.get_submodule(name), register)(lambda *call: fired.append(name))
    model(IMAGES).sum().backward()
    assert fired == [name]


@each_kind
def test_a_hook_for_all_modules_fires(kind):
    model, fired = model_of(kind), set()
    hook = all_modules.register_module_forward_hook(lambda module, *call: fired.add(module))
    try:
        model(IMAGES)
    finally:
        hook.remove()
    assert fired == set(callable_modules(model).values())


@each_kind
@pytest.mark.parametrize("name", ["blocks.1", "blocks.1.norm1", "cls_attn_blocks.1.norm1"])
def test_grad_cam(kind, name):
    kept = {}
    for of in (kind, "plain"):
        layer = (model := model_of(of)).get_submodule(name)
        layer.register_forward_hook(lambda m, i, o: kept.update(activation=o.detach()))
        layer.register_full_backward_hook(lambda m, i, o: kept.update(gradient=o[0]))
        model(IMAGES)[:, 1].sum().backward()
        kept[of] = (kept["activation"] * kept["gradient"].mean(1, keepdim=True)).sum(-1).relu()
    assert kept[kind].max() > 0
    assert_close(kept[kind], kept["plain"], 1e-4)  # through two blocks' gradients


@each_kind
def test_saliency(kind):
    gradients = []
    for of in (kind, "plain"):
        images = IMAGES.clone().requires_grad_()
        model_of(of)(images)[:, 1].sum().backward()
        gradients.append(images.grad)
    assert gradients[1].abs().max() > 0
    assert_close(*gradients, 1e-4)


# ---- other modules in place of ours --------------------------------------------------------------


class Adapted(nn.Module):
    """A linear layer and a product of two small matrices (LoRA, Hu et al. 2021)."""

    def __init__(self, base, rank=4):
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + x @ self.down.t() @ self.up.t()


class AdaptedWithWeight(Adapted):
    """The same, showing the weight of the layer within, as peft does."""

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias


@each_kind
@pytest.mark.parametrize("adapter", [Adapted, AdaptedWithWeight])
@pytest.mark.parametrize("names", [LINEAR, *[(name,) for name in LINEAR]], ids=",".join)
def test_lora_trains(kind, adapter, names):
    torch.manual_seed(0)
    model = model_of(kind, train=True).requires_grad_(False)
    for block in (*model.blocks, *model.cls_attn_blocks):
        for name in names:
            parent, _, leaf = name.rpartition(".")
            owner = block.get_submodule(parent)
            setattr(owner, leaf, adapter(getattr(owner, leaf)))
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 4 * len(names)
    optimizer = torch.optim.SGD(trained.values(), 0.1)
    before = model(IMAGES)
    before.square().mean().backward()
    for name, parameter in trained.items():
        assert (parameter.grad.abs().max() > 0) == name.endswith("up"), name
    optimizer.step()
    after = model(IMAGES)
    assert (after - before).abs().max() > 1e-3 * before.abs().max()
    # All of it acts: the same with what it adds put into the weights.
    for module in list(model.modules()):
        for leaf, child in module.named_children():
            if isinstance(child, adapter):
                child.base.weight.data += child.up @ child.down
                setattr(module, leaf, child.base)
    assert_close(model(IMAGES), after, 1e-4)  # batch statistics amplify rounding


@each_kind
@pytest.mark.parametrize(
    "name", [f"blocks.0.{n}" for n in (*LINEAR, "local_mp.conv2", "mlp.act", "norm2")]
)
def test_a_replaced_forward_is_called(kind, name, logits):
    model = model_of(kind)
    module = model.get_submodule(name)
    forward = module.forward
    module.forward = lambda x: 2 * forward(x)
    with torch.no_grad():
        assert (model(IMAGES) - logits).abs().max() > 1e-3 * logits.abs().max()
    del module.forward
    assert_close(model(IMAGES), logits)


@each_kind
def test_other_settings_of_a_layer_count(kind, logits):
    for name, replacement in (
        ("blocks.0.mlp.act", nn.ReLU()),
        ("blocks.0.mlp.act", nn.GELU(approximate="tanh")),
        ("blocks.0.norm2", nn.LayerNorm(32, eps=0.1)),
        ("blocks.0.local_mp.conv2", nn.Conv2d(32, 32, 5, padding=2, groups=32)),
        ("blocks.0.mlp.fc1", nn.Linear(32, 128, bias=False)),
        ("blocks.0.mlp.drop", nn.Hardtanh(-0.1, 0.1)),
    ):
        outputs = []
        for of in (kind, "plain"):
            model = model_of(of)
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, copy.deepcopy(replacement))
            outputs.append(model(IMAGES))
        assert_close(*outputs)
        assert not torch.equal(outputs[0], logits)


@each_kind
def test_parametrisations_act_and_train(kind):
    gradients = {}
    for of in (kind, "plain"):
        model = model_of(of)
        torch.manual_seed(0)
        nn.utils.parametrizations.weight_norm(model.blocks[0].attn.qkv)
        nn.utils.parametrizations.spectral_norm(model.blocks[0].mlp.fc1)
        model(IMAGES).square().sum().backward()
        gradients[of] = {n: p.grad for n, p in model.named_parameters()}
    for name, gradient in gradients["plain"].items():
        if "parametrizations" in name:
            assert gradient.abs().max() > 0
            assert_close(gradients[kind][name], gradient, 1e-4)  # as for Grad-CAM


@each_kind
def test_pruning(kind):
    from torch.nn.utils import prune

    model = model_of(kind, train=True)
    pruned = [model.get_submodule(f"blocks.0.{n}") for n in (*LINEAR, "local_mp.conv2")]
    for module in pruned:
        prune.l1_unstructured(module, "weight", 0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(IMAGES).square().mean().backward()
        optimizer.step()
    for module in pruned:
        gradient = module.weight_orig.grad
        assert gradient.abs().max() > 0
        assert (gradient[module.weight_mask == 0] == 0).all()


@each_kind
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dynamic_quantisation(kind, logits):
    quantised = torch.ao.quantization.quantize_dynamic(model_of(kind), {nn.Linear}, torch.qint8)
    found = quantised(IMAGES)
    assert_close(found, logits, 0.1)  # 7 bits
    assert not torch.equal(found, logits)
    plain = torch.ao.quantization.quantize_dynamic(model_of("plain"), {nn.Linear}, torch.qint8)
    assert_close(found, plain(IMAGES), 0.05)  # a tie of rounding falls another way


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plain"])
def test_one_branch_falls_back_alone(kind, monkeypatch):
    from xcite.engines.torch.fast.attention import FastXCA
    from xcite.engines.torch.fast.local import FastLPI
    from xcite.engines.torch.fast.mlp import FastMlp

    model, ran = model_of(kind), []
    for fast, name in ((FastXCA, "branch"), (FastLPI, "branch"), (FastMlp, "added_to")):
        method = getattr(fast, name)
        monkeypatch.setattr(
            fast,
            name,
            lambda self, *a, method=method: ran.append(type(self).__name__) or method(self, *a),
        )
    model(IMAGES)
    block = ["FastXCA", "FastLPI", "FastMlp"]
    classes = [] if "usual" in kind else ["FastMlp"] * 2  # class attention's usual form is plain
    assert ran == block * 2 + classes
    ran.clear()
    model.blocks[0].mlp.fc1.register_forward_hook(lambda *call: None)
    model(IMAGES)
    assert ran == ["FastXCA", "FastLPI", *block, *classes]


# ---- copies, dtypes, layouts, devices ------------------------------------------------------------


@each_kind
def test_copies_compute_the_same(kind):
    model = model_of(kind)
    expected = model(IMAGES)  # fills what is kept per grid
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ):
        assert type(twin) is type(model)
        torch.testing.assert_close(twin(IMAGES), expected, rtol=0, atol=0)


# 10, 7 and 52 bits through two blocks.
@each_kind
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float16", 0.02), ("bfloat16", 0.1), ("float64", 1e-5)]
)
def test_other_dtypes(kind, dtype, tolerance, logits):
    dtype = getattr(torch, dtype)
    model = model_of(kind).to(dtype)
    found = model(IMAGES.to(dtype))
    assert found.dtype == dtype
    assert_close(found, logits, tolerance)
    model.train()(IMAGES.to(dtype)).sum().backward()
    assert all(p.grad is None or p.grad.dtype == dtype for p in model.parameters())


@each_kind
def test_channels_last(kind, logits):
    model = model_of(kind).to(memory_format=torch.channels_last)
    assert_close(model(IMAGES.to(memory_format=torch.channels_last)), logits)


@each_kind
def test_meta_device(kind, logits):
    model = model_of(kind)
    model(IMAGES)
    nowhere = copy.deepcopy(model).to("meta")
    assert nowhere(IMAGES.to("meta")).shape == (3, 10)
    with torch.device("meta"):
        empty = build("torch", ARCHITECTURE, None, **KINDS[kind])
    empty.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert_close(empty(IMAGES), logits)


@each_kind
def test_fake_tensors(kind, logits):
    from torch._subclasses.fake_tensor import FakeTensorMode

    used, fresh = model_of(kind), model_of(kind)
    used(IMAGES)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for model in (used, fresh):
            assert model(mode.from_tensor(IMAGES)).shape == (3, 10)
        built = build("torch", ARCHITECTURE, None, train=True, **KINDS[kind])
        built(torch.empty(2, 3, 48, 48)).sum().backward()
    for model in (used, fresh):
        assert_close(model(IMAGES), logits)


# ---- tracing and compiling -----------------------------------------------------------------------


class Logits(nn.Module):
    """The model without its second argument."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images)


@each_kind
def test_symbolic_tracing(kind, logits):
    graph = torch.fx.symbolic_trace(Logits(model_of(kind)))
    assert_close(graph(IMAGES), logits)
    assert_close(graph(OTHER), model_of(kind)(OTHER))


@each_kind
@pytest.mark.parametrize("arguments", [None, {"paths": None}])
def test_symbolic_tracing_without_drop_path(kind, logits, arguments):
    graph = torch.fx.symbolic_trace(model_of(kind), concrete_args=arguments)
    assert_close(graph(IMAGES), logits)


def test_scripting_is_refused_in_words():
    with pytest.raises(XciteError, match=r"torch\.jit\.trace"):
        torch.jit.script(model_of(next(iter(KINDS))))


@pytest.mark.parametrize(
    "around",
    [
        torch.nn.DataParallel,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: torch.nn.DataParallel(torch.compile(model, backend="eager")),
    ],
    ids=["parallel", "compiled", "both"],
)
def test_weights_go_through_what_is_around_a_model(around):
    model = model_of(next(iter(KINDS)))
    own = xcite.read_weights(model)
    wrapped = around(model)
    for prefix in ("", "module.", "_orig_mod.module."):
        doubled = {prefix + name: array * 2 for name, array in own.items()}
        xcite.load_weights(wrapped, doubled)
        for name, array in xcite.read_weights(wrapped).items():
            np.testing.assert_array_equal(array, own[name] * 2)
        xcite.load_weights(model, own)


def test_weights_of_what_is_no_model_are_refused():
    with pytest.raises(XciteError, match=r"Linear is no model that xcite\.create_model made"):
        xcite.read_weights(torch.nn.DataParallel(torch.nn.Linear(2, 2)))


@each_kind
@pytest.mark.filterwarnings("ignore")
def test_torchscript_tracing(kind, logits):
    graph = torch.jit.trace(model_of(kind), IMAGES)
    assert_close(graph(IMAGES), logits)
    assert_close(graph(IMAGES[:2]), logits[:2])


@each_kind
@pytest.mark.parametrize("named", [True, False], ids=["by name", "by place"])
def test_export_for_any_batch_and_size(kind, named, logits):
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    shapes = {"images": dynamic} if named else (dynamic,)
    program = torch.export.export(model_of(kind), (IMAGES,), dynamic_shapes=shapes).module()
    assert_close(program(IMAGES), logits)
    assert_close(program(OTHER), model_of(kind)(OTHER))


@each_kind
@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_compiles_in_one_graph(kind, bf16):
    results = []
    for compiled in (False, True):
        model = model_of(kind, train=True)
        if compiled:
            model.compile(fullgraph=True, backend="aot_eager")
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found = model(IMAGES)
        found.float().sum().backward()
        results.append((found, model.blocks[0].mlp.fc1.weight.grad))
    # 8 bits, or batch statistics that amplify rounding
    for expected, found in zip(*results, strict=True):
        assert_close(found, expected, 0.1 if bf16 else 1e-3)


# ---- other kinds of differentiation --------------------------------------------------------------


def loss_of(model, weights, images):
    return torch.func.functional_call(model, weights, (images,)).square().sum()


@each_kind
def test_functional_gradients(kind):
    model = model_of(kind)
    model(IMAGES).square().sum().backward()
    weights = {n: p.detach() for n, p in model.named_parameters()}
    found = torch.func.grad(loss_of, argnums=1)(model, weights, IMAGES)
    each = torch.func.vmap(torch.func.grad(loss_of, argnums=1), (None, None, 0))(
        model, weights, IMAGES[:, None]
    )
    largest = max(p.grad.abs().max() for p in model.parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad.abs().max() > 1e-4 * largest:  # else all is rounding
            assert_close(found[name], parameter.grad, 1e-4)
            assert_close(each[name].sum(0), parameter.grad, 1e-4)


@each_kind
def test_batched_and_forward_mode_derivatives(kind, logits):
    model = model_of(kind)
    assert_close(torch.func.vmap(lambda image: model(image[None])[0])(IMAGES), logits)
    image, direction = IMAGES[:1, :, :16, :16], IMAGES[1:2, :, :16, :16]
    jacobian = torch.func.jacrev(lambda x: model(x)[0])(image)
    assert jacobian.shape == (10, 1, 3, 16, 16)
    expected = (jacobian * direction).sum((1, 2, 3, 4))
    _, tangent = torch.func.jvp(model, (image,), (direction,))
    assert_close(tangent[0], expected, 1e-4)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(image, direction)
        tangent = torch.autograd.forward_ad.unpack_dual(model(dual)).tangent
    assert_close(tangent[0], expected, 1e-4)


@each_kind
@pytest.mark.parametrize("train", [False, True])
def test_differentiating_twice(kind, train):
    seconds = []
    for of in (kind, "plain"):
        model = model_of(of, train=train).double()
        images = IMAGES.double().requires_grad_()
        weights = list(model.parameters())
        first = torch.autograd.grad(
            model(images).square().sum(), [images, *weights], create_graph=True
        )
        penalty = sum(g.square().sum() for g in first)
        seconds.append(torch.autograd.grad(penalty, [images, *weights], materialize_grads=True))
    largest = max(g.abs().max() for g in seconds[1])
    for found, expected in zip(*seconds, strict=True):
        scale = max(expected.abs().max(), 1e-6 * largest)
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=1e-8 * scale)
