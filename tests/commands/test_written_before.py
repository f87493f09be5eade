"""Bundles that an earlier Xcite wrote still open and answer as they did."""

import tarfile
from pathlib import Path

import numpy as np
import pytest

import xcite
from xcite.runtime.opening import open_model

pytest.importorskip("openvino")
FIXTURES = Path(__file__).parents[1] / "fixtures" / "written_before" / "bundles"
FORMATS = pytest.mark.parametrize("format", ["onnx", "openvino"])

# The same graph on another processor: float32 sums in another order, as in the parity tests.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    with tarfile.open(FIXTURES / "bundles.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@FORMATS
def test_a_bundle_written_before_answers_as_it_did(bundles: Path, format: str) -> None:
    predictor = xcite.Predictor(bundles / format)
    assert predictor.info.model == "xcit_test"
    assert predictor.class_names == ["ant", "bee", "cat", "猫"]
    with np.load(FIXTURES / "answers.npz") as stored:
        found = predictor.run(stored["images"])
        assert set(found) == {"logits", "class_attention"}
        for name, values in found.items():
            expected = stored[f"{format}_{name}"]
            largest = np.abs(expected).max()
            np.testing.assert_allclose(values, expected, rtol=0, atol=TOLERANCE * largest)


@FORMATS
def test_it_opens_like_any_model(bundles: Path, format: str) -> None:
    opened = open_model(bundles / format)
    assert (opened.size, opened.preprocessing.crop_ratio) == ((32, 32), 0.875)
    assert opened.architecture.num_classes == len(opened.class_names or []) == 4
