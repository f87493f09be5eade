"""`xcite fit-head`: a frozen network learns other classes, and teaches them."""

import numpy as np
import pytest
from painted_classes import paint

from xcite.cli import main
from xcite.engines import create_engine, installed
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.training.teachers import head
from xcite.variants import RegNetArchitecture
from xcite.weights import Metadata, open_weights, save_weights

COLOURS = {"green": 3, "red": 900, "dark": 40}
SEEN = Preprocessing(size=16, mean=(0, 0, 0), std=(1, 1, 1))


def call(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


@pytest.fixture(params=installed())
def engine(request):
    return request.param


@pytest.fixture
def network(tmp_path):
    """A small RegNet of 7 classes that it was never taught."""
    architecture = RegNetArchitecture(8, 8.0, 2.0, 4, depth=4, stem_width=8, num_classes=7)
    tensors = create_engine(installed()[0], architecture, seed=4).read_weights()
    path = tmp_path / "network.safetensors"
    names = [f"other {number}" for number in range(7)]
    save_weights(
        path,
        tensors,
        Metadata(architecture=architecture, class_names=names, preprocessing=SEEN),
    )
    return path


@pytest.fixture
def pictures(tmp_path):
    for part, count in (("train", 6), ("val", 3)):
        for name, colour in COLOURS.items():
            for number in range(count):
                paint(tmp_path / "data" / part / name / f"{number}.png", colour + number % 3)
    return tmp_path / "data"


def test_the_head_knows_the_pictures_classes_and_teaches_them(
    network, pictures, engine, tmp_path, capsys
):
    taught = tmp_path / "taught.safetensors"
    assert call("fit-head", network, pictures, taught, "--engine", engine) == 0
    said = capsys.readouterr().out
    assert "training: 18 pictures of 3 classes" in said
    assert "validation top-1 100.00 %" in said
    file = open_weights(taught)
    assert file.metadata.class_names == ["dark", "green", "red"]
    assert file.metadata.metrics["top1"] == 100.0
    assert file.architecture.num_classes == 3
    old, new = open_weights(network).tensors, file.tensors
    for name in old:
        if not name.startswith("head."):  # the network itself is as it was
            np.testing.assert_array_equal(new[name], old[name])
    assert call("evaluate", taught, "--data", pictures, "--engine", engine) == 0
    assert "100.00" in capsys.readouterr().out

    settings = {
        "data.train": pictures / "train",
        "data.validation": pictures / "val",
        "data.workers": 0,
        "data.holdout": "null",
        "optim.epochs": 1,
        "optim.batch": 6,
        "optim.warmup_epochs": 0,
        "preprocessing.size": 32,
        "model.embed_dim": 16,
        "model.depth": 1,
        "model.num_heads": 2,
        "distill.loss": "hard",
        "distill.teacher": taught,
        "run.engine": engine,
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    assert call("train", "scratch", *words, "--out", tmp_path / "run") == 0


def test_the_classifier_is_what_scikit_learn_fits():
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = random.standard_normal((60, 5)) * (1, 10, 0.1, 3, 1) + labels[:, None]
    features = features.astype(np.float32)
    found = head.fit(features, labels, 3)
    assert 70 < found.accuracy <= 100
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    standard = StandardScaler().fit(features.astype(np.float64))
    model = LogisticRegression(C=found.strength, max_iter=1000)
    model.fit(standard.transform(features), labels)
    logits = features @ found.weight.T + found.bias
    shares = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(
        shares / shares.sum(1, keepdims=True),
        model.predict_proba(standard.transform(features)),
        atol=1e-4,  # where L-BFGS stops
    )


def test_two_classes_have_two_rows():
    features = np.array([[0.0], [0.1], [1.0], [1.1]], np.float32)
    found = head.fit(features, np.array([0, 0, 1, 1]), 2)
    assert found.weight.shape == (2, 1)
    assert ((features @ found.weight.T + found.bias).argmax(1) == [0, 0, 1, 1]).all()


def test_a_class_with_one_picture_is_refused():
    with pytest.raises(XciteError, match="class 1 has 1 pictures; every class needs two"):
        head.fit(np.zeros((3, 2), np.float32), np.array([0, 0, 1]), 2)
