"""How a typed program uses Xcite; `test_types.py` has mypy check it, and nobody runs it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_type

import numpy as np
from PIL import Image

import xcite
from xcite.data.sources import Source, open_source
from xcite.engines.paddle.backbone import Backbone as PaddleBackbone
from xcite.engines.torch.backbone import Backbone as TorchBackbone
from xcite.export.export import export
from xcite.export.options import ExportOptions
from xcite.preprocessing import Preprocessing
from xcite.runtime import Answer, BundleInfo, UnreadablePicture
from xcite.weights.convert import convert


def models(name: str) -> None:
    model = xcite.create_model("xcit_nano_12_p8", engine="torch", num_classes=10)
    assert_type(model, TorchBackbone)
    assert_type(xcite.create_model("xcit_nano_12_p8"), PaddleBackbone)
    assert_type(xcite.create_model("xcit_nano_12_p8", engine=name), Any)
    weights = xcite.read_weights(model)
    assert_type(xcite.load_weights(model, weights), TorchBackbone)
    model.reset_classifier(3)
    names: list[str] = xcite.list_models("nano*")
    print(names, model.num_features)


def frames() -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    yield np.zeros((8, 8, 3), np.uint8)


def predictor(bundle: Path) -> None:
    with xcite.Predictor(bundle, mode="throughput") as ready:
        assert_type(ready.predict("cat.jpg"), list[Answer])
        name, probability = ready.predict(b"...")[0][0]
        print(name.upper(), probability + 1)
        for answer in ready.predict([Path("cat.jpg"), b"..."], on_error="return"):
            assert_type(answer, Answer | UnreadablePicture)
            if isinstance(answer, xcite.XciteError):
                print(answer.picture)
            else:
                assert_type(answer[0], tuple[str, float])
        with open("cat.jpg", "rb") as file:
            ready.predict([file, bytearray(b"..."), memoryview(b"..."), Image.new("L", (9, 9))])
        ready.predict(np.zeros((2, 9, 9, 3), np.uint8))
        assert_type(ready.predict_each(frames(), batch=1), Iterator[Answer])
        logits: np.ndarray[Any, Any] = ready.logits(np.zeros((1, 3, 8, 8), np.float32))
        print(logits, ready.info.precision)


def training(folder: Path) -> None:
    recipe = xcite.recipe.load("digits", ["optim.epochs=1"])
    epochs: int = recipe.optim.epochs
    outcome = xcite.training.train(recipe, folder)
    best: float | None = outcome.best
    source: Source = open_source("digits", split="validation")
    opened = xcite.runtime.open_model(folder)
    logits = opened.logits(np.stack([opened.pixels(np.zeros((8, 8, 3), np.uint8))]))
    print(epochs, best, len(source), logits.shape, Preprocessing(size=32).size)
    xcite.recipe.OptimRecipe(epochs=3, lr=1e-3)


def weights(path: Path) -> None:
    file = xcite.weights.open_weights(path)
    tensors: dict[str, np.ndarray[Any, Any]] = dict(file.tensors)
    convert(path, path.with_suffix(".pth"), to="official")
    assert_type(export(file, path / "bundle", ExportOptions(format="onnx")), BundleInfo)
    print(tensors, file.architecture.num_classes)
