"""Bundles that were sealed anew over contradictions or damage end in one line."""

import shutil

import numpy as np
import pytest

pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")

from serving import ARCHITECTURE, PREPROCESSING, make_bundle

from xcite.canonical import initial_weights
from xcite.engines import installed
from xcite.errors import XciteError
from xcite.export.export import ExportOptions, export
from xcite.runtime.bundle import DESCRIPTION, read_info, seal_folder
from xcite.runtime.predictor import Predictor
from xcite.weights import Metadata, open_weights, save_weights


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("damaged") / "bundle")


@pytest.fixture(scope="module")
def sound_openvino(sound, tmp_path_factory):
    import openvino

    folder = tmp_path_factory.mktemp("openvino") / "bundle"
    folder.mkdir()
    openvino.save_model(openvino.Core().read_model(sound / "model.onnx"), folder / "model.xml")
    seal_folder(folder, read_info(sound).model_copy(update={"format": "openvino"}))
    return folder


def _resealed(sound, folder, *, cut=None, **changes):
    shutil.copytree(sound, folder)
    fields = read_info(folder).model_dump()
    (folder / DESCRIPTION).unlink()
    if cut is not None:
        name, share = cut
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])
    seal_folder(folder, read_info(sound).model_validate({**fields, **changes}))
    return folder


def _one_line(folder, runtime=None):
    def use():
        predictor = Predictor(folder, runtime=runtime, threads=1)
        predictor.run(np.zeros((1, 3, 32, 32), np.float32))

    with pytest.raises(XciteError) as caught:
        use()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"outputs": ["logits", "features"]}, "has no output features"),
        ({"format": "openvino"}, "does not list model.bin, model.xml"),
        ({"format": "paddle"}, "does not list inference.json, inference.pdiparams"),
        ({"architecture": {"kind": "xcit"}}, "architecture cannot be read"),
        ({"architecture": {"kind": "vit"}}, "architecture cannot be read"),
        ({"architecture": {}}, "architecture cannot be read"),
    ],
)
def test_descriptions_that_the_program_contradicts(sound, tmp_path, changes, said):
    assert said in _one_line(_resealed(sound, tmp_path / "bundle", **changes))


@pytest.mark.parametrize("field", ["num_classes", "in_chans"])
def test_another_number_of_classes_or_channels(sound, tmp_path, field):
    architecture = {**read_info(sound).architecture, field: 5}
    assert "5" in _one_line(_resealed(sound, tmp_path / "bundle", architecture=architecture))


@pytest.mark.parametrize("value", ["8", None, -3, 2.5, [], 10**30])
def test_values_that_no_architecture_has(sound, tmp_path, value):
    for field in ("patch_size", "depth", "num_classes"):
        architecture = {**read_info(sound).architecture, field: value}
        folder = _resealed(sound, tmp_path / field, architecture=architecture)
        assert "architecture cannot be read" in _one_line(folder)


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_short_model_file(sound, tmp_path, share, runtime):
    _one_line(_resealed(sound, tmp_path / "bundle", cut=("model.onnx", share)), runtime)


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_short_openvino_files(sound_openvino, tmp_path, share, name):
    _one_line(_resealed(sound_openvino, tmp_path / "bundle", cut=(name, share)))


@pytest.mark.paddle
@pytest.mark.skipif("paddle" not in installed(), reason="needs PaddlePaddle")
def test_short_paddle_files(tmp_path):
    weights = initial_weights(ARCHITECTURE, seed=3)
    metadata = Metadata(architecture=ARCHITECTURE, preprocessing=PREPROCESSING)
    save_weights(tmp_path / "w.safetensors", weights, metadata)
    export(
        open_weights(tmp_path / "w.safetensors"),
        tmp_path / "sound",
        ExportOptions(format="paddle"),
    )
    for number, name in enumerate(read_info(tmp_path / "sound").files):
        for share in (0, 0.3, 0.99):
            folder = tmp_path / f"{number}-{share}"
            _one_line(_resealed(tmp_path / "sound", folder, cut=(name, share)))
