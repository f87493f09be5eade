"""A bundle is refused as soon as anything in it is not what was sealed."""

import contextlib
import json

import numpy as np
import pytest

from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.runtime.bundle import (
    DESCRIPTION,
    BundleInfo,
    describe,
    read_info,
    seal_folder,
    sealed_program,
    whole_bundle,
)
from xcite.variants import ARCHITECTURES, XCiTArchitecture

GRAPH = b"\x08\x08\x12\x07a graph"  # an ONNX file: its version, and who made it
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
    (folder / "model.onnx").write_bytes(GRAPH)
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


@pytest.mark.parametrize("name", [".DS_Store", "README.md", "model.bin", "model.onnx.data"])
def test_files_beside_are_ignored(bundle, name):
    (bundle / name).write_bytes(b"of somebody else")
    (bundle / ".git").mkdir()
    assert read_info(bundle).files.keys() == {"model.onnx"}


def test_links_are_read_when_their_content_matches(bundle, tmp_path):
    elsewhere = tmp_path / "blobs"
    elsewhere.mkdir()
    for name in ("model.onnx", DESCRIPTION):  # as hub caches keep them
        (bundle / name).rename(elsewhere / name)
        (bundle / name).symlink_to(elsewhere / name)
    read_info(bundle)
    (elsewhere / "model.onnx").write_bytes(b"another graph")
    with pytest.raises(XciteError, match="altered or belongs to another"):
        read_info(bundle)
    (elsewhere / "model.onnx").unlink()
    with pytest.raises(XciteError, match=r"lacks model\.onnx"):
        read_info(bundle)


def test_a_folder_in_place_of_a_file_is_one_line(bundle):
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").mkdir()
    with pytest.raises(XciteError, match=r"cannot read .*model\.onnx"):
        read_info(bundle)


def _external(location):
    """An ONNX model, one tensor of which lies in another file: in a graph inside a graph."""
    import onnx
    from onnx import TensorProto, helper

    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    output = helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])
    inner = helper.make_graph([constant], "inner", [], [output])
    branch = helper.make_node("If", ["b"], ["d"], then_branch=inner, else_branch=inner)
    condition = helper.make_tensor_value_info("b", TensorProto.BOOL, [])
    result = helper.make_tensor_value_info("d", TensorProto.FLOAT, [1])
    return onnx.helper.make_model(helper.make_graph([branch], "outer", [condition], [result]))


@pytest.mark.parametrize("where", ["../secret", "/etc/passwd", "weights.bin", "link", "a/../../b"])
def test_tensors_outside_the_seal_are_refused(tmp_path, where):
    onnx = pytest.importorskip("onnx")
    folder = tmp_path / "bundle"
    folder.mkdir()
    onnx.save(_external(where), folder / "model.onnx")
    seal_folder(folder, info())
    (folder / "weights.bin").write_bytes(bytes(4))  # beside it, but not sealed
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(XciteError, match="which the bundle does not hold"):
        read_info(folder)


def test_tensors_in_a_sealed_file_are_accepted(tmp_path):
    onnx = pytest.importorskip("onnx")
    folder = tmp_path / "bundle"
    folder.mkdir()
    onnx.save(_external("weights.bin"), folder / "model.onnx")
    (folder / "weights.bin").write_bytes(bytes(4))
    seal_folder(folder, info())
    assert set(read_info(folder).files) == {"model.onnx", "weights.bin"}


def test_a_program_that_is_not_sealed_is_refused(bundle):
    for changes, name in (
        ({"format": "paddle"}, r"inference\.json, inference\.pdiparams"),
        ({"format": "openvino"}, r"model\.bin, model\.xml"),
        ({"files": {}}, r"model\.onnx"),
    ):
        edit(bundle, reseal=True, **{"format": "onnx", **changes})
        with pytest.raises(XciteError, match=f"does not list {name}"):
            sealed_program(bundle, read_info(bundle))


def test_included_xml_is_refused(tmp_path):
    (tmp_path / "model.xml").write_text('<!DOCTYPE net [<!ENTITY x SYSTEM "/etc/passwd">]><net/>')
    (tmp_path / "model.bin").write_bytes(b"")
    seal_folder(tmp_path, info(format="openvino"))
    with pytest.raises(XciteError, match="would open"):
        read_info(tmp_path)


def test_every_flipped_bit_of_a_bundle_is_noticed_or_harmless(bundle):
    whole = read_info(bundle)
    draw = np.random.default_rng(7)
    for name in (DESCRIPTION, "model.onnx"):
        path = bundle / name
        data = path.read_bytes()
        for bit in draw.integers(0, 8 * len(data), 300):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << int(bit % 8)
            path.write_bytes(changed)
            with contextlib.suppress(XciteError):
                assert read_info(bundle) == whole
        path.write_bytes(data)


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
    (other / "model.onnx").write_bytes(b"\x08\x09" + GRAPH[2:])
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
    with pytest.raises(ZeroDivisionError), whole_bundle(target) as folder:
        (folder / "half").write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []
    for data in (GRAPH[:2], GRAPH):  # the second replaces the first
        with whole_bundle(target) as folder:
            (folder / "model.onnx").write_bytes(data)
            seal_folder(folder, info())
    assert (target / "model.onnx").read_bytes() == GRAPH
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    read_info(target)


def test_a_failure_leaves_the_earlier_bundle(bundle):
    with pytest.raises(RuntimeError), whole_bundle(bundle):
        raise RuntimeError
    read_info(bundle)


def test_files_beside_a_replaced_bundle_are_kept(bundle):
    (bundle / "README.md").write_text("how it was made")
    (bundle / "pictures").mkdir()
    with whole_bundle(bundle) as folder:
        (folder / "model.onnx").write_bytes(GRAPH[:2])
        seal_folder(folder, info())
    assert (bundle / "README.md").read_text() == "how it was made"
    assert (bundle / "pictures").is_dir()
    assert (bundle / "model.onnx").read_bytes() == GRAPH[:2]
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]
    read_info(bundle)


def test_nothing_but_a_bundle_is_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(XciteError, match="not a bundle"), whole_bundle(tmp_path):
        pass
    assert (tmp_path / "thesis.tex").exists()
