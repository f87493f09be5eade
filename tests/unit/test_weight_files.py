"""Xcite's own files: metadata, run folders, checkpoints, and what a file's name tells."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from xcite.canonical import initial_weights, shapes
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.training import checkpoint
from xcite.variants import RegNetArchitecture, XCiTArchitecture, find
from xcite.weights import Metadata, open_weights, save_weights
from xcite.weights.imagenet import imagenet_classes
from xcite.weights.opening import locate
from xcite.weights.safetensors_files import read_safetensors, write_safetensors

SMALL = XCiTArchitecture(
    8, embed_dim=16, depth=1, num_heads=2, num_classes=3, tokens_norm=False, eta=0.5
)


@pytest.fixture(scope="module")
def weights():
    return initial_weights(SMALL)


def test_metadata_travel_with_the_weights(weights, tmp_path):
    metadata = Metadata(
        variant=None,
        architecture=SMALL,
        class_names=["cat", "Hündin", "鸟"],
        preprocessing=Preprocessing(size=32, crop_ratio=0.9, mean=(0.1, 0.2, 0.3)),
        provenance={"source": "drawn"},
        recipe_hash="abc",
        metrics={"top1": 12.5},
    )
    path = tmp_path / "small.safetensors"
    save_weights(path, weights, metadata)
    opened = open_weights(path)
    assert opened.architecture == SMALL  # tokens_norm and eta, too, which no shape shows
    assert opened.dialect == "xcite"
    assert opened.metadata.model_dump(exclude={"provenance"}) == metadata.model_dump(
        exclude={"provenance"}
    )
    assert opened.metadata.provenance == {"source": "drawn", "part": "weights"}
    for name, array in weights.items():
        np.testing.assert_array_equal(opened.tensors[name], array)


def test_regnet_metadata_keep_their_kind(tmp_path):
    regnet = RegNetArchitecture(8, 0.0, 2.0, 8, depth=1, stem_width=8, num_classes=2)
    save_weights(tmp_path / "r.safetensors", initial_weights(regnet), Metadata(architecture=regnet))
    assert open_weights(tmp_path / "r.safetensors").architecture == regnet


def test_weights_that_do_not_fit_their_metadata_are_not_written(weights, tmp_path):
    path = tmp_path / "wrong.safetensors"
    with pytest.raises(XciteError, match=r"of another shape: head\.weight"):
        save_weights(path, weights, Metadata(architecture=replace(SMALL, num_classes=4)))
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_another_kind_is_refused(weights, tmp_path):
    """The shapes would fit: only the metadata know that the logits would not."""
    path = tmp_path / "small.safetensors"
    save_weights(path, weights, Metadata(architecture=SMALL))
    other = XCiTArchitecture(8, embed_dim=16, depth=1, num_heads=2, num_classes=3, tokens_norm=True)
    with pytest.raises(XciteError, match="trained with tokens_norm=False, the model has True"):
        open_weights(path, architecture=other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": {"patch_size": 8, "colour": 1}}, "unknown field 'colour'"),
        ({"architecture": {"patch_size": "8"}}, "says patch_size is '8'"),
        ({"architecture": {"patch_size": 8}}, "is incomplete"),
        ({"architecture": {"w0": 8, "depth": 10**9}}, "says depth is 1000000000"),
        ({"preprocessing": {"size": 10**9}}, "preprocessing.size"),
        ({"colour": 1}, "colour"),
    ],
)
def test_strange_metadata_end_in_one_line(weights, tmp_path, change, said):
    path = tmp_path / "strange.safetensors"
    write_safetensors(path, weights, {"xcite": json.dumps(change)})
    with pytest.raises(XciteError, match=said):
        open_weights(path)


def test_run_folders_give_their_best_weights(weights, tmp_path):
    with pytest.raises(XciteError, match=r"neither best\.safetensors nor last\.safetensors"):
        open_weights(tmp_path)
    save_weights(
        tmp_path / "last.safetensors", weights, Metadata(architecture=SMALL, metrics={"a": 1})
    )
    assert open_weights(tmp_path).metadata.metrics == {"a": 1}
    save_weights(
        tmp_path / "best.safetensors", weights, Metadata(architecture=SMALL, metrics={"a": 2})
    )
    assert open_weights(str(tmp_path)).metadata.metrics == {"a": 2}


def test_training_state_holds_weights_and_average(weights, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    state = {f"weights/{n}": a for n, a in weights.items()}
    state |= {f"ema/{n}": a + a.dtype.type(1) for n, a in weights.items()}
    state |= {f"moment1/{n}": np.zeros_like(a) for n, a in weights.items()}
    write_safetensors(path, {**state, "step": np.int64(3).reshape(())})
    opened = open_weights(path)
    assert opened.parts == ("weights", "ema")
    np.testing.assert_array_equal(opened.tensors["cls_token"], weights["cls_token"])
    average = open_weights(path, part="ema").tensors
    np.testing.assert_array_equal(average["cls_token"], weights["cls_token"] + 1)


def test_a_published_name_tells_resolution_and_classes(tmp_path):
    architecture = find("xcit_nano_12_p16")
    zeros = {
        n: np.zeros(s, np.int64 if n.endswith("tracked") else np.float32)
        for n, s in shapes(architecture).items()
    }
    path = tmp_path / "xcit_nano_12_p16_384_dist.safetensors"
    write_safetensors(path, zeros)
    opened = open_weights(path)
    assert opened.architecture == architecture
    assert opened.metadata.variant == "xcit_nano_12_p16_384_dist"
    assert opened.metadata.preprocessing == Preprocessing(size=384)
    assert opened.metadata.class_names == imagenet_classes()
    shutil.move(path, tmp_path / "mine.safetensors")
    assert open_weights(tmp_path / "mine.safetensors").metadata.variant == "xcit_nano_12_p16"


def test_class_names_stand_in_the_order_of_the_logits():
    names = imagenet_classes()
    assert len(names) == len(set(names)) == 1000
    anchors = {
        0: "tench",
        207: "golden retriever",
        281: "tabby",
        404: "airliner",
        517: "crane (machine)",
        817: "sports car",
        954: "banana",
        999: "toilet tissue",
    }
    assert {i: names[i] for i in anchors} == anchors


def test_integers_are_no_weights(weights, tmp_path):
    path = tmp_path / "integers.safetensors"
    write_safetensors(path, {**weights, "norm.bias": np.zeros(16, np.int32)})
    with pytest.raises(XciteError, match=r"norm\.bias is of type int32"):
        open_weights(path)


def test_dino_checkpoints_give_the_backbone(weights, tmp_path):
    import pickle

    backbone = {n: a for n, a in weights.items() if not n.startswith("head.")}
    path = tmp_path / "full.pdparams"
    projection = {"head.mlp.0.weight": np.ones((4, 16), np.float32)}
    teacher = {**{f"backbone.{n}": a for n, a in backbone.items()}, **projection}
    student = {f"module.{n}": a + a.dtype.type(1) for n, a in teacher.items()}
    path.write_bytes(pickle.dumps({"student": student, "teacher": teacher, "epoch": 3}))
    opened = open_weights(path, part="teacher")
    assert opened.architecture.num_classes == 0
    np.testing.assert_array_equal(opened.tensors["cls_token"], weights["cls_token"])
    assert "left aside: head.mlp.0.weight" in opened.metadata.provenance["notes"][0]


def test_a_header_length_may_begin_like_a_pickle(weights, tmp_path):
    """One length in 256 has 0x80, a pickle's first byte, as its lowest."""
    path = tmp_path / "small.safetensors"
    write_safetensors(path, weights)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    padding = (0x80 - length) % 256
    path.write_bytes(
        (length + padding).to_bytes(8, "little")
        + data[8 : 8 + length]
        + b" " * padding
        + data[8 + length :]
    )
    assert path.read_bytes()[0] == 0x80
    assert open_weights(path).architecture.num_classes == 3


def test_an_extracted_average_keeps_what_travels_with_the_weights(weights, tmp_path):
    state = {f"{kind}/{name}": a for kind in ("weights", "ema") for name, a in weights.items()}
    preprocessing = Preprocessing(size=32)
    metadata = Metadata(architecture=SMALL, preprocessing=preprocessing)
    checkpoint.save(tmp_path / "checkpoint.safetensors", state, checkpoint.Position(), metadata)
    opened = open_weights(tmp_path / "checkpoint.safetensors", part="ema")
    assert opened.metadata.preprocessing == preprocessing


def test_every_flipped_bit_is_noticed_or_harmless(weights, tmp_path):
    path, flipped = tmp_path / "whole.safetensors", tmp_path / "flipped.safetensors"
    save_weights(path, weights, Metadata(architecture=SMALL, class_names=["a", "b", "c"]))
    whole, data = open_weights(path), path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    draw = np.random.default_rng(5)
    bits = draw.choice(8 * header, 600, replace=False).tolist()
    bits += draw.integers(8 * header, 8 * len(data), 400).tolist()
    silent = []
    for bit in bits:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        flipped.write_bytes(changed)
        try:
            opened = open_weights(flipped)
        except XciteError:
            continue
        same = opened.metadata == whole.metadata and all(
            np.array_equal(array, opened.tensors[name]) for name, array in whole.tensors.items()
        )
        if not same:
            silent.append(bit)
    assert not silent


def test_exchanged_pages_and_tensors_are_noticed(tmp_path):
    page = np.arange(1024, dtype=np.float32)
    path = tmp_path / "pages.safetensors"
    write_safetensors(path, {"a": np.concatenate([page, page + 1]), "b": page[:6], "c": page[6:12]})
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    ends = (0, 4096, 8192, 8216, 8240)
    one, other, b, c = (slice(start + at, start + end) for at, end in itertools.pairwise(ends))
    for name, first, second in (("a", one, other), ("b", b, c)):
        changed = bytearray(data)
        changed[first], changed[second] = data[second], data[first]
        path.write_bytes(changed)
        tensors, _ = read_safetensors(path)
        with pytest.raises(XciteError, match=f"'{name}' differs from its checksum"):
            tensors[name].read()


def test_files_without_checksums_open(weights, tmp_path):
    path = tmp_path / "older.safetensors"
    text = Metadata(architecture=SMALL).model_dump_json()
    save_file(weights, path, metadata={"xcite": text})
    opened = open_weights(path)
    assert all(np.array_equal(array, opened.tensors[name]) for name, array in weights.items())


def test_a_path_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "w.safetensors").touch()
    assert locate("~/w.safetensors") == tmp_path / "w.safetensors"
    with pytest.raises(XciteError, match=r"there is no weights file ~nobody-here/w\.pth"):
        locate("~nobody-here/w.pth")


def test_a_damaged_header_is_not_quoted_whole(tmp_path):
    header = json.dumps({"xcite": "a" * 100_000}).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(XciteError, match="not a sound safetensors file") as error:
        open_weights(path)
    assert len(str(error.value)) < 1000
