"""Classes and files whose names are no UTF-8, or hold line ends, from training to the server."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image
from small_runs import run

pytest.importorskip("torch")
CLASSES = [b"caf\xe9", b"dog", b"new\nline", "猫".encode()]
RECIPE = """
model: {{name: xcit_nano_12_p16, depth: 1, embed_dim: 16, num_heads: 2}}
data: {{train: {root}, validation: {root}, workers: 0, on_error: skip}}
preprocessing: {{size: 32}}
augment: {{randaugment: null}}
optim: {{batch: 4, epochs: 1, warmup_epochs: 0}}
run: {{engine: torch}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("names")
    rng = np.random.default_rng(0)
    for part in (b"train", b"val"):
        for name in CLASSES:
            folder = os.path.join(os.fsencode(place / "pictures"), part, name)
            os.makedirs(folder)
            for number in range(3):
                file = io.BytesIO()
                pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
                Image.fromarray(pixels).save(file, "PNG")
                with open(os.path.join(folder, b"%d\xe9\n.png" % number), "wb") as out:
                    out.write(file.getvalue())
    (place / "recipe.yaml").write_text(RECIPE.format(root=place / "pictures"))
    return place


@pytest.fixture(scope="module")
def trained(place):
    damaged = os.path.join(os.fsencode(place / "pictures"), b"train", CLASSES[0], b"0\xe9\n.png")
    with open(damaged, "wb") as file:
        file.write(b"damaged")
    assert run("train", place / "recipe.yaml", "--out", place / "run") == 0
    return place / "run"


def test_a_run_says_what_it_skipped_and_goes_on(trained, capsys):
    (row,) = (trained / "skipped.txt").read_text("utf-8").splitlines()
    assert row.split("\t")[1].endswith(r"caf\udce9/0\udce9\n.png")
    assert run("train", "--resume", trained) == 0
    assert run("report", trained) == 0
    assert run("inspect", trained, "--json") == 0
    out = capsys.readouterr().out
    said = json.loads(out[out.index("{\n") :])
    assert [os.fsencode(name) for name in said["parts"][0]["metadata"]["class_names"]] == CLASSES


def test_figures_as_json(trained, place):
    val, out = place / "pictures" / "val", place / "figures.json"
    arguments = ["--data", val, "--engine", "torch", "--json", out, "--workers", "0"]
    assert run("evaluate", trained, *arguments) == 0
    classes = json.loads(out.read_text("utf-8"))
    assert "caf\\udce9" in json.dumps(classes)


def test_bundle_and_server(trained, place):
    pytest.importorskip("onnxruntime")
    testing = pytest.importorskip("starlette.testclient")
    from xcite.runtime.predictor import Predictor
    from xcite.server.serve import create_app

    val = str(place / "pictures" / "val")
    assert run("export", trained, place / "bundle", "--format", "onnx") == 0
    predictor = Predictor(place / "bundle", threads=1)
    assert [os.fsencode(name) for name in predictor.class_names] == CLASSES
    path = os.path.join(os.fsencode(val), CLASSES[0], b"1\xe9\n.png")
    with open(path, "rb") as file, testing.TestClient(create_app(predictor)) as client:
        picture = file.read()
        answer = client.post("/predict", content=picture, headers={"content-type": "image/png"})
    (entry,) = json.loads(answer.content)["pictures"]
    assert {guess["name"] for guess in entry["predictions"]} == set(predictor.class_names)
