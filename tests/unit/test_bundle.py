"""A bundle is refused as soon as anything in it is not what was sealed."""

import json

import pytest

from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.runtime.bundle import (
    DESCRIPTION,
    BundleInfo,
    describe,
    read_info,
    seal_folder,
    whole_folder,
)
from xcite.variants import ARCHITECTURES, XCiTArchitecture

ARCHITECTURE = XCiTArchitecture(patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=3)


def info(**changes):
    fields = {
        "format": "onnx",
        "precision": "f32",
        "architecture": describe(ARCHITECTURE),
        "size": (32, 48),
        "preprocessing": Preprocessing(size=48),
        "class_names": ["ant", "bee", "猫"],
        "outputs": ["logits"],
        "agreement": {"largest_difference": 1e-7},
    }
    return BundleInfo(**{**fields, **changes})


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"a graph")
    seal_folder(folder, info())
    return folder


def edit(bundle, reseal=False, **changes):
    """Change fields of bundle.json, leaving its seal alone or making a new one."""
    path = bundle / DESCRIPTION
    data = {**json.loads(path.read_text()), **changes}
    if reseal:
        data["seal"] = BundleInfo.model_validate(data).digest()
    path.write_text(json.dumps(data))


def test_a_sealed_bundle_reads_back(bundle):
    read = read_info(bundle)
    assert read.built() == ARCHITECTURE
    assert read.class_names == ["ant", "bee", "猫"]
    assert (read.size, read.grid(32, 48), read.grid(33, 47)) == ((32, 48), (4, 6), (5, 6))


@pytest.mark.parametrize("name", ["xcit_nano_12_p8", "regnety_160"])
def test_architectures_survive(name):
    assert info(architecture=describe(ARCHITECTURES[name])).built() == ARCHITECTURES[name]


def test_an_altered_file_is_refused(bundle):
    (bundle / "model.onnx").write_bytes(b"a graph!")
    with pytest.raises(XciteError, match=r"model\.onnx was altered"):
        read_info(bundle)


def test_a_missing_file_is_refused(bundle):
    (bundle / "model.onnx").unlink()
    with pytest.raises(XciteError, match=r"lacks model\.onnx"):
        read_info(bundle)


def test_an_added_file_is_refused(bundle):
    (bundle / "model.bin").write_bytes(b"of another bundle")
    with pytest.raises(XciteError, match=r"holds besides its own files model\.bin"):
        read_info(bundle)


def test_a_linked_file_is_refused(bundle, tmp_path):
    (bundle / "model.onnx").rename(tmp_path / "elsewhere")
    (bundle / "model.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(XciteError, match="not a regular file"):
        read_info(bundle)


@pytest.mark.parametrize(
    "changes",
    [
        {"class_names": ["bee", "ant", "cat"]},
        {"preprocessing": {**Preprocessing(size=48).model_dump(), "mean": [0.1, 0.1, 0.1]}},
        {"precision": "int8"},
    ],
)
def test_an_altered_description_is_refused(bundle, changes):
    edit(bundle, **changes)
    with pytest.raises(XciteError, match="wrong seal"):
        read_info(bundle)


def test_the_description_of_another_bundle_is_refused(bundle, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.onnx").write_bytes(b"another graph")
    seal_folder(other, info())
    (bundle / DESCRIPTION).write_bytes((other / DESCRIPTION).read_bytes())
    with pytest.raises(XciteError, match="belongs to another bundle"):
        read_info(bundle)


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a/b", "..", "a\\b"])
def test_names_outside_the_folder_are_refused(bundle, name):
    edit(bundle, reseal=True, files={name: "0" * 64})
    with pytest.raises(XciteError, match="outside the bundle"):
        read_info(bundle)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[1]", "version None"),
        ('{"version": 99}', "version 99"),
        ('{"version": 1}', "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"version": 1, "surprise": 2}', "cannot be read"),
        ("\ud800".encode("utf-8", "surrogatepass"), "cannot be read"),
    ],
)
def test_a_damaged_description_is_an_error_in_one_line(bundle, text, message):
    data = text if isinstance(text, bytes) else text.encode()
    (bundle / DESCRIPTION).write_bytes(data)
    with pytest.raises(XciteError, match=message) as caught:
        read_info(bundle)
    assert "\n" not in str(caught.value)


def test_something_else_is_no_bundle(tmp_path):
    with pytest.raises(XciteError, match="is not a bundle"):
        read_info(tmp_path)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), whole_folder(target) as folder:
        (folder / "half").write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []
    for text in ("first", "second"):  # the second replaces the first
        with whole_folder(target) as folder:
            (folder / "model.onnx").write_text(text)
            seal_folder(folder, info())
    assert (target / "model.onnx").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    read_info(target)


def test_a_failure_leaves_the_earlier_bundle(bundle):
    with pytest.raises(RuntimeError), whole_folder(bundle):
        raise RuntimeError
    read_info(bundle)


def test_nothing_but_a_bundle_is_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(XciteError, match="not a bundle"), whole_folder(tmp_path):
        pass
    assert (tmp_path / "thesis.tex").exists()
