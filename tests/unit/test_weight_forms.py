"""Files as people's programs save them: wrapped, nested, cut into shards, packed, with company."""

import argparse
import collections
import datetime
import decimal
import functools
import gzip
import json
import pathlib
import random
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from xcite.canonical import initial_weights, shapes
from xcite.cli import main
from xcite.engines import create_engine, installed
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.variants import RegNetArchitecture, XCiTArchitecture, find, published
from xcite.weights import open_weights
from xcite.weights.convert import convert
from xcite.weights.dialects import TABLES, express, foreign_names
from xcite.weights.identification import identify
from xcite.weights.imagenet import imagenet_classes
from xcite.weights.inspection import inspect
from xcite.weights.parts import find_parts
from xcite.weights.stored import StoredTensor
from xcite.weights.torch_writer import write_torch

torch = pytest.importorskip("torch")

XCIT = XCiTArchitecture(4, 8, 1, 2, num_classes=10, cls_attn_layers=1)
REGNET = RegNetArchitecture(8, 0.0, 2.0, 8, depth=1, stem_width=8, num_classes=10)
WEIGHTS = initial_weights(XCIT)
TEACHER = initial_weights(REGNET)


def tensors(prefix="", weights=WEIGHTS, factor=1):
    return {prefix + k: torch.from_numpy(np.array(v * factor)) for k, v in weights.items()}


def assert_read(path, factor=1, **options):
    opened = open_weights(path, **options)
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(opened.tensors[name], array * factor, err_msg=name)
    return opened


def notes(opened):
    return " / ".join(opened.metadata.provenance.get("notes", []))


KEYS = {
    **dict.fromkeys(
        ("model_state_dict", "weights", "net", "network", "module", "backbone", "model_state"),
        "weights",
    ),
    **dict.fromkeys(("ema_state_dict", "model_ema_state_dict", "averaged_model", "swa"), "ema"),
    "teacher_state_dict": "teacher",
    "student_state_dict": "student",
    "state.model": "weights",
    "checkpoint.state.weights": "weights",
}


@pytest.mark.parametrize("key", KEYS)
def test_any_key_at_any_depth(tmp_path, key):
    saved = tensors()
    for level in reversed(key.split(".")):
        saved = {level: saved, "epoch": 3}
    torch.save(saved, tmp_path / "x.pth")
    assert assert_read(tmp_path / "x.pth").part == KEYS[key]


PREFIXES = [
    "model.", "net.", "network.", "module.", "backbone.", "_orig_mod.", "_orig_mod.module.",
    "module._orig_mod.", "module.model.net.encoder.", "timm_model.", "0.", "my_own_Wrapper.",
]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix(tmp_path, prefix):
    torch.save(tensors(prefix), tmp_path / "x.pth")
    assert_read(tmp_path / "x.pth")
    save_file({prefix + k: v for k, v in WEIGHTS.items()}, tmp_path / "x.safetensors")
    assert_read(tmp_path / "x.safetensors")
    torch.save(tensors(prefix, TEACHER), tmp_path / "x.pth")
    assert open_weights(tmp_path / "x.pth").architecture.stages() == REGNET.stages()


def test_several_models_are_parts(tmp_path):
    path = tmp_path / "x.pth"
    averaged = {"n_averaged": torch.tensor(3), **tensors("module.", factor=2)}
    torch.save({"model": tensors(), "model_ema": averaged, "swa_state": {**averaged}}, path)
    assert assert_read(path).parts == ("weights", "ema", "swa_state.module")
    assert_read(path, 2, part="ema")
    assert_read(path, 2, part="swa_state.module")
    assert "n_averaged" in notes(open_weights(path, part="ema"))
    torch.save({**tensors("student.model."), **tensors("teacher.backbone.", TEACHER)}, path)
    opened = assert_read(path)
    assert (opened.part, opened.parts) == ("student", ("student", "teacher"))
    assert open_weights(path, part="teacher").architecture.kind == "regnet"
    # weights and their average in one set of tensors, one of them without a prefix
    torch.save({"state_dict": {**tensors(), **tensors("ema_model.", factor=2)}}, path)
    assert assert_read(path).parts == ("weights", "ema")
    assert_read(path, 2, part="ema")


def test_a_state_in_a_tuple_or_list(tmp_path):
    path = tmp_path / "x.pth"
    for saved in ((tensors(), 3), [{"epoch": 3}, {"net": tensors("module.")}], {"a": [tensors()]}):
        torch.save(saved, path)
        assert_read(path)
    torch.save([1, 2], path)
    with pytest.raises(XciteError, match="no weights were found in it"):
        open_weights(path)


def test_a_folder_with_one_weights_file(tmp_path):
    torch.save({"state_dict": tensors("model.")}, tmp_path / "last.ckpt")
    (tmp_path / "log.txt").write_text("nothing")
    assert_read(tmp_path)
    torch.save({"state_dict": tensors("model.")}, tmp_path / "epoch=1.ckpt")
    with pytest.raises(XciteError, match="name the weights file itself"):
        open_weights(tmp_path)


def test_the_usual_key_counts_where_several_hold_weights(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"best": {"net": tensors(factor=3)}, "state_dict": tensors()}, path)
    assert assert_read(path).parts == ("weights", "best.net")
    with pytest.raises(XciteError, match=r"no part 'ema'; it holds weights, best\.net"):
        open_weights(path, part="ema")


def test_tensors_of_a_loss_are_named_and_left_aside(tmp_path, capsys):
    path = tmp_path / "x.ckpt"
    loss = {"criterion.weight": torch.ones(3), "train_acc.total": torch.tensor(3)}
    for prefix in ("model.", ""):
        torch.save({"state_dict": {**tensors(prefix), **loss}, "callbacks": {}}, path)
        said = "tensors that belong to no model are left aside: criterion.weight, train_acc.total"
        assert notes(assert_read(path)) == said
        assert inspect(path).parts[0].aside == ["criterion.weight", "train_acc.total"]
        with pytest.raises(XciteError, match=r"not the model's: criterion\.weight"):
            open_weights(path, strict=True)
        for arguments in (
            ("inspect", path, "--strict"),
            ("convert", path, tmp_path / "y.pth", "--to", "official", "--strict"),
        ):
            with pytest.raises(SystemExit) as ended:
                main([str(a) for a in arguments])
            assert ended.value.code == 2
            assert "criterion.weight" in capsys.readouterr().err
    # What has the name of a part of the model is no loss.
    torch.save({**tensors(), "head.scale": torch.ones(3)}, path)
    with pytest.raises(XciteError, match=r"not part of the model: head\.scale"):
        open_weights(path)


def class_of(monkeypatch, module, name):
    """A class that a pickle knows by this module and name, as an installed package has it."""
    made = types.ModuleType(module)
    kind = type(name, (), {"__module__": module, "__init__": lambda self: setattr(self, "a", 1)})
    setattr(made, name, kind)
    pieces = module.split(".")
    for count in range(1, len(pieces)):
        parent = ".".join(pieces[:count])
        if parent not in sys.modules:
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, module, made)
    return kind


COMPANY = [
    ("lightning.pytorch.callbacks.model_checkpoint", "ModelCheckpoint"),
    ("pytorch_lightning.utilities.parsing", "AttributeDict"),
    ("omegaconf.dictconfig", "DictConfig"),
    ("yacs.config", "CfgNode"),
    ("box.box", "Box"),
    ("easydict", "EasyDict"),
    ("addict.addict", "Dict"),
    ("ml_collections.config_dict.config_dict", "ConfigDict"),
    ("timm.scheduler.cosine_lr", "CosineLRScheduler"),
    ("transformers.training_args", "TrainingArguments"),
    ("torchmetrics.classification.accuracy", "MulticlassAccuracy"),
]


@pytest.mark.parametrize(("module", "name"), COMPANY, ids=[module for module, _ in COMPANY])
def test_objects_of_known_packages_are_left_aside(tmp_path, monkeypatch, module, name):
    kind = class_of(monkeypatch, module, name)
    torch.save({"model": tensors(), "settings": [kind(), kind()]}, tmp_path / "x.pth")
    assert f"{module}.{name} (2)" in notes(assert_read(tmp_path / "x.pth"))


def test_objects_of_unknown_packages_are_refused_by_name(tmp_path, monkeypatch):
    kind = class_of(monkeypatch, "somebodys.code", "Config")
    torch.save({"model": tensors(), "settings": kind()}, tmp_path / "x.pth")
    with pytest.raises(XciteError, match=r"asks for 'somebodys\.code\.Config'.*state_dict"):
        open_weights(tmp_path / "x.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_values_around_the_weights_are_left_aside(tmp_path, zipped):
    arguments = argparse.Namespace(
        device=torch.device("cpu"),
        dtype=torch.float16,
        path=pathlib.PurePosixPath("/data"),
        folders=collections.defaultdict(list, {"a": [1]}),
        values=[{1, 2}, frozenset([1]), slice(1, 2), 1j, range(3), bytearray(b"1"), 2**4000],
        when=[datetime.datetime(2024, 1, 1), decimal.Decimal("1.5"), datetime.timedelta(1)],
        optimizer=functools.partial(torch.optim.AdamW, lr=1e-3),
        seed=[random.getstate(), np.random.RandomState(0).get_state(), torch.get_rng_state()],
        drawn=[np.random.RandomState(0), np.random.default_rng(0), torch.Size([2])],
        arrays=[np.zeros(2, dtype=k) for k in ("u4", "u8", "c8", "U3", "M8[s]", "O", "bool")],
        tensors=[torch.zeros(2, dtype=k) for k in (torch.uint16, torch.complex64, torch.bool)],
    )
    keys = {(1, 2): 3, torch.device("cpu"): 4, None: 5, 1.5: 6, 2**80: 7}
    torch.save(
        {"args": arguments, "keys": keys, "model": tensors(), "sparse": torch.eye(2).to_sparse()},
        tmp_path / "x.pth",
        _use_new_zipfile_serialization=zipped,
    )
    said = notes(assert_read(tmp_path / "x.pth"))
    assert "argparse.Namespace" in said
    assert "torch.device (2)" in said
    assert inspect(tmp_path / "x.pth").notes == [said]


def test_parameters_with_attributes(tmp_path):
    saved = {}
    for name, tensor in tensors().items():
        saved[name] = torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor
        saved[name].kept = {"sharded": False}
    torch.save(saved, tmp_path / "x.pth")
    assert not notes(assert_read(tmp_path / "x.pth"))


def test_weights_of_eight_bits(tmp_path):
    for kind in (torch.float8_e4m3fn, torch.float8_e5m2):
        saved = {k: v.to(kind) if v.is_floating_point() else v for k, v in tensors().items()}
        torch.save(saved, tmp_path / "x.pth")
        opened = open_weights(tmp_path / "x.pth")
        assert inspect(tmp_path / "x.pth").parts[0].dtypes == [str(kind).removeprefix("torch.")]
        for name, tensor in saved.items():
            np.testing.assert_array_equal(opened.tensors[name], tensor.to(torch.float32).numpy())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.to_sparse(), "head.weight is a sparse tensor"),
        (
            lambda t: torch.quantize_per_tensor(t, 1.0, 0, torch.qint8),
            "head.weight is a quantised tensor",
        ),
        (lambda t: t.to("meta"), "head.weight is a tensor without numbers"),
        (lambda t: t.to(torch.complex64), "head.weight is of type complex64"),
        (lambda t: t.to(torch.int32), "head.weight is of type int32"),
        (lambda t: t.abs().to(torch.float8_e8m0fnu), "head.weight is a float8_e8m0fnu tensor"),
        (lambda t: torch.device("cpu"), "head.weight is torch.device"),
        (lambda t: np.array(["a"]), "head.weight is NumPy type 'U1'"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_no_plain_tensors_are_refused_by_name(tmp_path, change, said):
    saved = tensors()
    saved["head.weight"] = change(saved["head.weight"])
    torch.save(saved, tmp_path / "x.pth")
    with pytest.raises(XciteError, match=said):
        open_weights(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.abs().to(torch.float8_e8m0fnu), "cls_token is a float8_e8m0fnu tensor"),
        (lambda t: t.to_sparse(), "cls_token is a sparse tensor"),
        (lambda t: t.to(torch.int16), "cls_token is of type int16"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_model_without_one_plain_tensor_is_refused_by_its_type(tmp_path, change, said):
    saved = {n: change(t) if t.is_floating_point() else t for n, t in tensors().items()}
    torch.save(saved, tmp_path / "x.pth")
    with pytest.raises(XciteError, match=said):
        open_weights(tmp_path / "x.pth")


def whole_module(path):
    torch.save(torch.nn.Linear(2, 2), path)


def module_in_a_dictionary(path):
    torch.save({"model": torch.nn.Linear(2, 2), "epoch": 3}, path)


def script(path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


def archive(path):
    with tarfile.open(path, "w") as tar:
        tar.add(__file__, "x.pth")


FOREIGN = {
    "web page": (b"\n<!DOCTYPE html><html>sign in</html>", "a web page, not weights"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "empty": (b"", "is empty"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
    "gguf": (b"GGUF" + bytes(64), "a GGUF file"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(64), "a single NumPy array"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x051.0", "an ONNX program"),
    "xz": (b"\xfd7zXZ\x00" + bytes(64), "compressed with xz"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(64), "a TensorFlow Lite program"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML text"),
    "json": (b'{"error": "not found"}', "a JSON text"),
    "protocol 0": (b"(dp0\nVa\np1\nI1\ns.", "protocol 0 or 1"),
    "tar": (archive, "a tar archive; unpack it"),
    "module": (whole_module, r"a whole pickled object, 'torch\.nn.*Linear'.*save model\.state"),
    "module inside": (module_in_a_dictionary, r"'model' is a pickled object, 'torch\.nn.*Linear'"),
    "script": (script, r"a TorchScript archive.*torch\.jit\.load"),
    "arrays": (lambda p: np.savez(p.open("wb"), a=np.ones(2)), r"a NumPy archive \(\.npz\)"),
}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_weights_file_says_what_it_is(tmp_path, what):
    content, said = FOREIGN[what]
    path = tmp_path / "xcit.pth"
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    with pytest.raises(XciteError, match=said) as error:
        open_weights(path)
    assert "\n" not in str(error.value)


def test_packed_files_are_read_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "aside"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "aside").mkdir()
    torch.save(tensors(), tmp_path / "x.pth")
    raw = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth.gz").write_bytes(gzip.compress(raw))
    assert_read(tmp_path / "x.pth.gz")
    assert inspect(tmp_path / "x.pth.gz").container == "PyTorch, compressed with gzip"
    for name in ("x.pth", "folder/x.pth"):
        with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr(name, raw)
            packed.writestr("__MACOSX/._x.pth", b"x")
        assert_read(tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "x.zip", "a") as packed:
        packed.writestr("other.pth", raw)
    with pytest.raises(XciteError, match="a zip archive of other files"):
        open_weights(tmp_path / "x.zip")
    (tmp_path / "twice.gz").write_bytes(gzip.compress(gzip.compress(raw)))
    with pytest.raises(XciteError, match="packed more than once"):
        open_weights(tmp_path / "twice.gz")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(raw)[:-20])
    with pytest.raises(XciteError, match="compressed data are damaged"):
        open_weights(tmp_path / "cut.gz")
    monkeypatch.setattr("xcite.weights.packed_files._ALLOWANCE", 1 << 16)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(1 << 24)))
    with pytest.raises(XciteError, match="as no weights do"):
        open_weights(tmp_path / "bomb.gz")
    assert list((tmp_path / "aside").iterdir()) == []


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(tmp_path, kind):
    stem = "model" if kind == "safetensors" else "pytorch_model"
    names = [f"{stem}-0000{i}-of-00003.{kind}" for i in (1, 2, 3)]
    where = {}
    for index, name in enumerate(names):
        part = {f"net.{k}": v for k, v in list(WEIGHTS.items())[index::3]}
        where |= dict.fromkeys(part, name)
        if kind == "safetensors":
            save_file(part, tmp_path / name)
        else:
            torch.save({k: torch.from_numpy(np.array(v)) for k, v in part.items()}, tmp_path / name)
    for source in (tmp_path, tmp_path / names[1]):  # without an index
        assert_read(source)
    index = tmp_path / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    for source in (tmp_path, index, tmp_path / names[0]):
        assert_read(source)
    report = inspect(index)
    assert report.container.endswith("3 shards")
    assert report.bytes == sum((tmp_path / name).stat().st_size for name in names)
    done = convert(tmp_path, tmp_path / "whole" / "x.pth", to="official")
    assert_read(done.path)
    (tmp_path / names[2]).unlink()
    with pytest.raises(XciteError, match=r"is shard 2 of 3; beside it is no .*-00003-of"):
        open_weights(tmp_path / names[1])
    with pytest.raises(XciteError, match=r"index\.json: beside it is no .*-00003-of"):
        open_weights(index)
    outside = ("../x.bin", "..", ".", "/etc/x.bin", "a/x.bin", "x" * 5000 + "..")
    for name in outside:
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(XciteError, match="plain names"):
            open_weights(index)
    for table in ("[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "{", "\xff"):
        index.write_text(table, "latin1")
        with pytest.raises(XciteError, match=r"no index of weights|plain names"):
            open_weights(index)


TIMM_CONFIG = {
    "architecture": "xcit_nano_12_p16_224",
    "num_classes": 10,
    "label_names": [f"class {i}" for i in range(10)],
    "pretrained_cfg": {
        "mean": [0.5, 0.4, 0.3], "std": [0.25, 0.25, 0.25], "input_size": [3, 96, 96],
        "interpolation": "bilinear", "crop_pct": 0.875, "tag": "fb_in1k",
    },
}  # fmt: skip
TIMM_READ = Preprocessing(
    size=96, crop_ratio=0.875, interpolation="bilinear", mean=(0.5, 0.4, 0.3), std=(0.25,) * 3
)


def hub_folder(folder, config, prefix="", processor=None):
    folder.mkdir(exist_ok=True)
    save_file({prefix + k: v for k, v in WEIGHTS.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_a_folder_of_timm(tmp_path, capsys):
    folder = hub_folder(tmp_path / "hub", TIMM_CONFIG)
    for source in (folder, folder / "model.safetensors"):
        opened = assert_read(source)
        assert opened.metadata.class_names == TIMM_CONFIG["label_names"]
        assert opened.metadata.preprocessing == TIMM_READ
    torch.save(tensors("module."), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert assert_read(folder).metadata.preprocessing == TIMM_READ
    with pytest.raises(SystemExit) as ended:
        main(["inspect", str(folder)])
    assert not ended.value.code
    assert "class 0, class 1" in capsys.readouterr().out


def test_a_folder_of_transformers(tmp_path):
    labels = {str(i): f"label {i}" for i in range(10)}
    processor = {
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2, "do_center_crop": True,
        "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224},
    }  # fmt: skip
    folder = hub_folder(tmp_path / "hf", {"id2label": labels}, "timm_model.", processor)
    metadata = assert_read(folder).metadata
    assert metadata.class_names == list(labels.values())
    assert metadata.preprocessing == Preprocessing(
        size=224, crop_ratio=0.875, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    unnamed = {str(i): f"LABEL_{i}" for i in range(10)}
    assert open_weights(hub_folder(folder, {"id2label": unnamed})).metadata.class_names is None
    plain = {"do_normalize": False, "size": 64, "resample": 1}
    metadata = open_weights(hub_folder(folder, {}, processor=plain)).metadata
    assert metadata.preprocessing == Preprocessing(size=64, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert "interpolation '1' is not known" in metadata.provenance["notes"][0]


@pytest.mark.parametrize(
    "config",
    [
        {"label_names": ["cat"]},
        {"pretrained_cfg": {"mean": ["a"], "std": [1]}},
        {"pretrained_cfg": {"input_size": [3, 10**12, 10**12]}},
        {"pretrained_cfg": {"mean": {"a": 1}, "crop_pct": "x", "interpolation": {}}},
    ],
)
def test_strange_configurations_are_noted(tmp_path, config):
    opened = assert_read(hub_folder(tmp_path / "hub", config))
    assert opened.metadata.class_names is None
    assert notes(opened)


def test_damaged_configurations_end_in_one_line(tmp_path):
    folder = hub_folder(tmp_path / "hub", {})
    for text in ("[]", "{", "\xff", "[" * 100_000):
        (folder / "config.json").write_text(text, "latin1")
        with pytest.raises(XciteError, match=r"config\.json (is no|holds no)"):
            open_weights(folder)


# ---- what a thousand classes are called --------------------------------------------------------


def zeros_file(path, architecture):
    """A file that holds nothing but names and zeros."""
    zeros = {
        name: np.zeros(shape, np.int64 if name.endswith("tracked") else np.float32)
        for name, shape in shapes(architecture).items()
    }
    save_file(zeros, path)
    return path


def test_a_thousand_classes_are_imagenet_only_where_the_source_says_so(tmp_path, capsys):
    model = find("xcit_nano_12_p16")
    for name in ("xcit_nano_12_p16_224_dist", "xcit_nano_12_p16_224.fb_in1k"):
        path = zeros_file(tmp_path / f"{name}.safetensors", model)
        assert open_weights(path).metadata.class_names == imagenet_classes()
    mine = zeros_file(tmp_path / "my_products.safetensors", model)
    assert open_weights(mine).metadata.class_names is None
    hub = tmp_path / "hub"
    hub.mkdir()
    zeros_file(hub / "model.safetensors", model)
    assert open_weights(hub).metadata.class_names is None
    config = {"architecture": "xcit_nano_12_p16_224", "pretrained_cfg": {"tag": "fb_in1k"}}
    (hub / "config.json").write_text(json.dumps(config))
    opened = open_weights(hub)
    assert opened.metadata.class_names == imagenet_classes()
    assert opened.metadata.variant == "xcit_nano_12_p16_224"
    robust = zeros_file(
        tmp_path / "debenedetti2022light-xcit-s-imagenet-linf.pth.safetensors",
        find("xcit_small_12_p16"),
    )
    assert open_weights(robust).metadata.class_names == imagenet_classes()


@pytest.mark.skipif(not installed(), reason="needs an engine")
def test_predict_answers_numbers_for_classes_without_names(tmp_path, capsys):
    from PIL import Image

    Image.new("RGB", (32, 32), (9, 99, 199)).save(tmp_path / "a.png")
    small = XCiTArchitecture(8, 8, 1, 2, num_classes=1000, cls_attn_layers=1)
    write_torch(
        tmp_path / "mine.pth", express(initial_weights(small), "official", small), wrap=None
    )
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(tmp_path / "mine.pth"), str(tmp_path / "a.png"), "--json"])
    assert not ended.value.code
    answers = json.loads(capsys.readouterr().out)
    assert not set(json.dumps(answers).lower().split('"')) & {n.lower() for n in imagenet_classes()}


# ---- robust models -----------------------------------------------------------------------------

CIFAR10 = Preprocessing(size=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616))
AS_THEY_ARE = Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3)
ROBUST = {
    "debenedetti2022light-xcit-s-cifar10-linf": ("xcit_small_12_p4_32", 10, CIFAR10),
    "debenedetti2022light-xcit-m-cifar10-linf": ("xcit_medium_12_p4_32", 10, CIFAR10),
    "xcit-s12-CIFAR-10": ("xcit_small_12_p4_32", 10, CIFAR10),
    "debenedetti2022light-xcit-s-imagenet-linf": ("xcit_small_12_p16", 1000, AS_THEY_ARE),
    "debenedetti2022light-xcit-m-imagenet-linf": ("xcit_medium_12_p16", 1000, AS_THEY_ARE),
    "xcit-s12-ImageNet-eps-8": ("xcit_small_12_p16", 1000, AS_THEY_ARE),
}


def placeholders(architecture, dialect="timm", prefix=""):
    """Names and shapes of a file in a dialect; there are no numbers to read."""
    table = TABLES[architecture.kind][dialect]
    state = {}
    for name, shape in shapes(architecture).items():
        if name.endswith("num_batches_tracked") and not table.counters:
            continue
        names = foreign_names(name, dialect, architecture.kind)
        if len(shape) == 2 and table.transposed:
            shape = shape[::-1]
        if len(shape) == 4 and ".se." in name and dialect in ("passl", "ppcls"):
            shape = shape[1::-1]
        if len(names) == 3:
            shape = (shape[0] // 3, *shape[1:])
        kind = "int64" if name.endswith("tracked") else "float32"
        state |= {prefix + foreign: StoredTensor(shape, kind, lambda: None) for foreign in names}
    return state


def identified(state, stem="x.pth"):
    from xcite.weights.containers import Contents

    parts = find_parts(state, lambda value: value)
    contents = Contents("PyTorch", {name: part.state for name, part in parts.items()})
    contents.beside = {name: part.beside for name, part in parts.items()}
    return identify(pathlib.Path(stem), contents, next(iter(parts)))


@pytest.mark.parametrize("stem", ROBUST)
def test_published_robust_models_are_known_by_their_files_names(stem):
    name, classes, preprocessing = ROBUST[stem]
    architecture = find(name, num_classes=classes)
    for suffix in (".pth.tar", ".pth"):
        model = identified(placeholders(architecture), stem + suffix)
        assert model.architecture == architecture
        assert model.metadata.variant == name
        assert model.metadata.preprocessing == preprocessing
    # The same name on a model of other widths says nothing.
    other = identified(placeholders(find("xcit_nano_12_p16", num_classes=classes)), f"{stem}.pth")
    assert other.architecture.stem_strides is None
    assert other.metadata.preprocessing != preprocessing


def test_a_normalisation_around_the_model_travels_with_it(tmp_path):
    def beside(mean, std):
        return {
            "normalize.mean": torch.tensor(mean).reshape(1, 3, 1, 1),
            "normalize.std": torch.tensor(std).reshape(1, 3, 1, 1),
        }

    torch.save(beside(CIFAR10.mean, CIFAR10.std) | tensors("model."), tmp_path / "x.pth")
    opened = assert_read(tmp_path / "x.pth", strict=True)
    assert opened.metadata.preprocessing.mean == CIFAR10.mean
    assert opened.metadata.preprocessing.std == CIFAR10.std
    for std in ([0.0] * 3, [float("nan")] * 3, [-1.0] * 3, [float("inf")] * 3):
        torch.save(beside([0.5] * 3, std) | tensors("model."), tmp_path / "x.pth")
        # No preprocessing can be made of these.
        assert "left aside: normalize.mean, normalize.std" in notes(assert_read(tmp_path / "x.pth"))
    one = {"normalize.mean": torch.tensor(0.5), "normalize.std": torch.tensor(0.25)}
    torch.save(one | tensors("model."), tmp_path / "x.pth")
    assert open_weights(tmp_path / "x.pth").metadata.preprocessing.std == (0.25,) * 3
    counted = beside([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    torch.save(counted | tensors("model."), tmp_path / "x.pth")
    read = open_weights(tmp_path / "x.pth").metadata.preprocessing
    np.testing.assert_allclose(read.mean, (0.485, 0.456, 0.406), rtol=1e-6)
    np.testing.assert_allclose(read.std, (0.229, 0.224, 0.225), rtol=1e-6)


def test_cifars_normalisation_tells_the_strides():
    architecture = find("xcit_medium_12_p4_32", num_classes=10)
    state = placeholders(architecture, prefix="model.")
    for name in ("mean", "std"):
        values = np.array(getattr(CIFAR10, name), np.float32).reshape(1, 3, 1, 1)
        state[name] = StoredTensor(values.shape, "float32", lambda values=values: values)
    model = identified(state)
    assert model.architecture == architecture
    assert model.metadata.preprocessing == CIFAR10
    assert any("stem is that of xcit_medium_12_p4_32" in note for note in model.notes)


def test_strides_given_by_name_are_kept(tmp_path, capsys):
    """A file whose name says nothing; what it is converted to knows its strides."""
    architecture = find("xcit_small_12_p4_32", num_classes=10, cls_attn_layers=2)
    source = zeros_file(tmp_path / "mine.safetensors", architecture)
    assert open_weights(source).architecture == find("xcit_small_12_p16", num_classes=10)
    target = tmp_path / "known.safetensors"
    arguments = ("convert", source, target, "--to", "xcite", "--model", "xcit_small_12_p4_32")
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    assert not ended.value.code
    assert open_weights(target).architecture == architecture
    away = ("convert", target, tmp_path / "away.pth", "--to", "timm")
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in away])
    assert (
        "timm files do not say that the stem's strides are (1, 1, 2, 2)" in capsys.readouterr().out
    )
    with pytest.raises(
        XciteError, match=r"trained with stem_strides=\(1, 1, 2, 2\), the model has"
    ):
        open_weights(target, architecture=find("xcit_small_12_p16", num_classes=10))


# ---- every published checkpoint in every dialect -----------------------------------------------

CHECKPOINTS = {
    # The 42 files of 14 models: distilled ones and those for 384 pixels have the same names.
    **{row.architecture: find(row.architecture) for row in published()},
    **{
        f"dino_{name}": find(name, num_classes=0)
        for name in [f"xcit_{size}_p{p}" for size in ("small_12", "medium_24") for p in (16, 8)]
    },
    "regnety_160": find("regnety_160"),
    **{
        f"light {name} {classes}": find(name, num_classes=classes)
        for size in ("small", "medium", "large")
        for name, classes in (
            (f"xcit_{size}_12_p16", 1000),
            (f"xcit_{size}_12_p4_32", 10),
            (f"xcit_{size}_12_p4_32", 100),
        )
    },
    "light flowers": find("xcit_small_12_p16", num_classes=102),
}
WRAPPERS = ("", "module.", "_orig_mod.module.", "model.backbone.", "Student.")


@pytest.mark.parametrize("dialect", ["official", "timm", "passl", "ppcls", "paddlevit"])
def test_the_names_of_every_published_checkpoint_are_recognised(dialect):
    same = {("timm", "regnet"): "official", ("paddlevit", "xcit"): "ppcls"}
    for index, (name, architecture) in enumerate(CHECKPOINTS.items()):
        prefix = WRAPPERS[index % len(WRAPPERS)]
        model = identified(placeholders(architecture, dialect, prefix))
        called = same.get((dialect, architecture.kind), dialect)
        # PaddleClas' names inside of `backbone.` are those of PASSL, too, and mean the same.
        assert model.dialect in (called, *(("passl",) if "backbone" in prefix else ())), name
        assert not model.aside, name
        assert {n: t.shape for n, t in model.stored.items()} == {
            n: s
            for n, s in shapes(architecture).items()
            if TABLES[architecture.kind][dialect].counters or not n.endswith("tracked")
        }, name
        assert model.architecture.same_tensors(architecture), name


@pytest.mark.parametrize("engine", installed())
def test_a_strided_stem_computes_the_same_in_every_file(tmp_path, engine):
    strided = XCiTArchitecture(4, 16, 1, 2, num_classes=3, stem_strides=(1, 1, 2, 2))
    weights = initial_weights(strided)
    images = np.random.default_rng(0).standard_normal((1, 3, 17, 20)).astype(np.float32)
    made = create_engine(engine, strided)
    made.load_weights(weights)
    usual = create_engine(engine, XCiTArchitecture(16, 16, 1, 2, num_classes=3))
    usual.load_weights(weights)
    assert np.abs(made.predict(images) - usual.predict(images)).max() > 1e-4
    assert made.attention(images).classes[0].shape[-1] == 1 + 5 * 5
