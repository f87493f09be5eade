"""Every dialect, there and back, bit for bit; names as the real classes have them."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xcite.canonical import shapes
from xcite.engines import installed
from xcite.errors import XciteError
from xcite.variants import ARCHITECTURES, RegNetArchitecture, XCiTArchitecture, find
from xcite.weights import Metadata, open_weights, save_weights
from xcite.weights.convert import convert
from xcite.weights.dialects import express, foreign_names

KEYS = Path(__file__).parents[1] / "fixtures/weights/layout_keys"
FILES = {
    "xcite": ".safetensors",
    "official": ".pth",
    "timm": ".safetensors",
    "passl": ".pdparams",
    "ppcls": ".pdparams",
    "paddlevit": ".pdparams",
}
SMALL = {
    "xcit": XCiTArchitecture(8, embed_dim=16, depth=2, num_heads=2, num_classes=3),
    "xcit of other options": XCiTArchitecture(
        4, 12, 1, 3, num_classes=0, in_chans=1, cls_attn_layers=1, mlp_ratio=2.5, qkv_bias=False,
        use_pos=False,
    ),
    "regnet": RegNetArchitecture(8, 8.0, 2.0, 4, depth=4, stem_width=8, num_classes=5),
}  # fmt: skip


def weights_of(architecture, seed=0):
    """Any bit pattern that is a number, zeros of both signs included; counters that count."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes(architecture).items():
        if name.endswith("num_batches_tracked"):
            weights[name] = np.asarray(random.integers(0, 2**40), np.int64).reshape(shape)
        else:
            weights[name] = random.standard_normal(shape, dtype=np.float32)
            weights[name].flat[0] = -0.0
    return weights


def assert_same_bits(found, expected, counters=True):
    assert list(found) == list(expected)
    for name, array in expected.items():
        if counters or not name.endswith("num_batches_tracked"):
            assert found[name].dtype == array.dtype
            assert found[name].tobytes() == array.tobytes(), name


def go_round(architecture, dialect, folder, seed=0):
    """Canonical -> dialect -> canonical, through files and the public functions."""
    weights = weights_of(architecture, seed)
    start = folder / "start.safetensors"
    save_weights(start, weights, Metadata(architecture=architecture))
    there = folder / f"there{FILES[dialect]}"
    done = convert(start, there, to=dialect)
    assert done.source.architecture == architecture
    found = open_weights(there, architecture=architecture)
    counters = dialect in ("xcite", "official", "timm")
    assert_same_bits(found.tensors, weights, counters)
    there.unlink()
    start.unlink()
    return found


@pytest.mark.parametrize("dialect", FILES)
@pytest.mark.parametrize("name", SMALL)
def test_round_trip(name, dialect, tmp_path):
    found = go_round(SMALL[name], dialect, tmp_path)
    if dialect == "timm" and name == "regnet":
        assert found.dialect == "official"  # the same names
    elif dialect == "paddlevit" and name != "regnet":
        assert found.dialect == "ppcls"  # the same names
    elif name != "xcit of other options":
        assert found.dialect == dialect


@pytest.mark.slow
@pytest.mark.parametrize("dialect", FILES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_round_trip_of_every_published_model(name, dialect, tmp_path):
    found = go_round(ARCHITECTURES[name], dialect, tmp_path)
    assert found.metadata.variant == name or dialect == "xcite"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_are_read_from_shapes(name):
    from xcite.weights.recognition import architecture_of, variant_of

    for classes, channels in ((1000, 3), (0, 1)):
        architecture = replace(ARCHITECTURES[name], num_classes=classes, in_chans=channels)
        read = architecture_of(shapes(architecture))
        assert read == architecture
        assert variant_of(read) == name


# file of real names: dialect, architecture, prefix of a distillation checkpoint
REAL = {
    "timm_xcit_nano_12_p8": ("timm", "xcit_nano_12_p8", ""),
    "timm_xcit_tiny_24_p16": ("timm", "xcit_tiny_24_p16", ""),
    "passl_xcit_nano_12_p8": ("passl", "xcit_nano_12_p8", ""),
    "passl_xcit_tiny_24_p16": ("passl", "xcit_tiny_24_p16", ""),
    "passl_regnety_160": ("passl", "regnety_160", ""),
    "passl_distillation_nano_12_p8": ("passl", "xcit_nano_12_p8", "Student."),
    "ppcls_fork_xcit_nano_12_p8": ("ppcls", "xcit_nano_12_p8", ""),
    "ppcls_fork_xcit_tiny_24_p16": ("ppcls", "xcit_tiny_24_p16", ""),
    "ppcls_fork_regnety_160": ("ppcls", "regnety_160", ""),
    "paddlevit_xcit_nano_12_p8": ("paddlevit", "xcit_nano_12_p8", ""),
    "paddlevit_xcit_tiny_24_p16": ("paddlevit", "xcit_tiny_24_p16", ""),
    "paddlevit_regnety_160": ("paddlevit", "regnety_160", ""),
}


@pytest.mark.parametrize("name", REAL)
def test_names_and_shapes_are_those_of_the_real_classes(name):
    dialect, model, prefix = REAL[name]
    architecture = find(model)
    # Arrays without memory of their own: names and shapes are all that counts here.
    hollow = {n: np.broadcast_to(np.float32(0), shape) for n, shape in shapes(architecture).items()}
    written = {prefix + n: list(a.shape) for n, a in express(hollow, dialect, architecture).items()}
    with gzip.open(KEYS / f"{name}.json.gz", "rt") as file:
        real = json.load(file)
    assert written == {n: shape for n, shape in real.items() if n.startswith(prefix)}


def test_linear_weights_are_transposed_for_paddle_even_square_ones():
    architecture = SMALL["xcit"]
    weights = weights_of(architecture)
    written = express(weights, "passl", architecture)
    square = "blocks.0.attn.proj.weight"
    np.testing.assert_array_equal(written[f"backbone.{square}"], weights[square].T)


def test_timm_splits_the_qkv_of_class_attention_only():
    assert foreign_names("cls_attn_blocks.1.attn.qkv.bias", "timm", "xcit") == [
        f"cls_attn_blocks.1.attn.{part}.bias" for part in "qkv"
    ]
    assert foreign_names("blocks.1.attn.qkv.bias", "timm", "xcit") == ["blocks.1.attn.qkv.bias"]


@pytest.mark.skipif("torch" not in installed(), reason="PyTorch is not installed")
@pytest.mark.parametrize("dialect", ["official", "timm"])
@pytest.mark.parametrize("mmap", [False, True])
def test_pytorch_accepts_what_we_write(dialect, mmap, tmp_path):
    import torch

    architecture = SMALL["xcit"]
    weights = weights_of(architecture)
    start, path = tmp_path / "start.safetensors", tmp_path / "written.pth"
    save_weights(start, weights, Metadata(architecture=architecture))
    convert(start, path, to=dialect)
    loaded = torch.load(path, weights_only=True, mmap=mmap)
    state = loaded["model"] if dialect == "official" else loaded
    expected = express(weights, dialect, architecture)
    assert_same_bits({n: t.numpy() for n, t in state.items()}, expected)


@pytest.mark.skipif("paddle" not in installed(), reason="PaddlePaddle is not installed")
@pytest.mark.parametrize("dialect", ["passl", "ppcls", "paddlevit"])
def test_paddle_accepts_what_we_write(dialect, tmp_path):
    import paddle

    for architecture in (SMALL["xcit"], SMALL["regnet"]):
        weights = weights_of(architecture)
        start, path = tmp_path / "start.safetensors", tmp_path / "written.pdparams"
        save_weights(start, weights, Metadata(architecture=architecture))
        convert(start, path, to=dialect)
        expected = express(weights, dialect, architecture)
        loaded = paddle.load(str(path))
        assert all(isinstance(tensor, paddle.Tensor) for tensor in loaded.values())
        assert_same_bits({n: t.numpy() for n, t in loaded.items()}, expected)
        assert_same_bits(paddle.load(str(path), return_numpy=True), expected)


@pytest.mark.skipif("torch" not in installed(), reason="PyTorch is not installed")
def test_other_number_types_and_layouts_of_pytorch(tmp_path):
    """Half, bfloat16 and double become float32; strided tensors are laid out; wrappers come off."""
    import torch

    architecture = SMALL["xcit"]
    weights = weights_of(architecture)
    path = tmp_path / "other.pth"
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        state = {
            f"module.{n}": torch.from_numpy(a).to(dtype if a.dtype == np.float32 else torch.int64)
            for n, a in weights.items()
        }
        expected = {
            n.removeprefix("module."): t.float().numpy() if t.is_floating_point() else t.numpy()
            for n, t in state.items()
        }
        name = "module.blocks.0.mlp.fc1.weight"
        state[name] = state[name].T.contiguous().T  # the same numbers, columns first
        state["module.norm.weight"] = torch.nn.Parameter(state["module.norm.weight"])
        for legacy in (False, True):
            torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=not legacy)
            assert_same_bits(open_weights(path).tensors, expected)


@pytest.mark.skipif("paddle" not in installed(), reason="PaddlePaddle is not installed")
def test_numbers_paddle_writes_in_other_types(tmp_path):
    import paddle

    architecture = SMALL["regnet"]
    weights = {n: np.abs(a) for n, a in weights_of(architecture).items()}
    state = express(weights, "passl", architecture)
    path = tmp_path / "other.pdparams"
    for dtype in ("float16", "bfloat16", "float64"):
        tensors = {
            n: paddle.to_tensor(np.ascontiguousarray(a)).cast(dtype) for n, a in state.items()
        }
        expected = open_weights_of(tensors, architecture)
        for protocol in (2, 3, 4):
            paddle.save(tensors, str(path), protocol=protocol)
            assert_same_bits(open_weights(path).tensors, expected, counters=False)


def open_weights_of(tensors, architecture):
    """Canonical float32 of PASSL tensors, without a file."""
    from xcite.weights.dialects import translate
    from xcite.weights.stored import StoredTensor

    arrays = {n: t.cast("float32").numpy() for n, t in tensors.items()}
    stored = {n: StoredTensor(a.shape, "float32", lambda a=a: a) for n, a in arrays.items()}
    canonical = {n: t.read() for n, t in translate(stored, "passl", "regnet").items()}
    return {
        n: canonical.get(n, np.zeros(shape, np.int64)) for n, shape in shapes(architecture).items()
    }


def test_a_dialect_can_be_forced_and_must_fit(tmp_path):
    architecture = SMALL["xcit"]
    start, path = tmp_path / "start.safetensors", tmp_path / "there.pdparams"
    save_weights(start, weights_of(architecture), Metadata(architecture=architecture))
    convert(start, path, to="passl")
    assert open_weights(path, dialect="passl").dialect == "passl"
    with pytest.raises(XciteError, match=r"missing: |cannot be read"):
        open_weights(path, dialect="timm")
    with pytest.raises(XciteError, match="unknown dialect 'pasl'; choose one of xcite, official"):
        open_weights(path, dialect="pasl")
    with pytest.raises(XciteError, match=r"passl weights are kept as \.pdparams"):
        convert(start, tmp_path / "x.pth", to="passl")
    with pytest.raises(XciteError, match="is the file to convert"):
        convert(start, start, to="xcite")
