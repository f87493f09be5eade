"""What leaves in other forms: four channels, embeddings, other operator sets, PaddleClas."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from small_runs import answered as run

from xcite import canonical
from xcite.engines import create_engine, installed
from xcite.errors import XciteError
from xcite.export import onnx_file
from xcite.export.export import export
from xcite.export.options import ExportOptions
from xcite.preprocessing import Preprocessing
from xcite.runtime.bundle import is_bundle, read_info
from xcite.runtime.predictor import Predictor
from xcite.variants import RegNetArchitecture, XCiTArchitecture
from xcite.weights import Metadata, WeightFile
from xcite.weights.imagenet import imagenet_classes
from xcite.weights.torch_writer import write_torch

onnx = pytest.importorskip("onnx")
pytest.importorskip("openvino")
pytest.importorskip("sklearn")
pytestmark = pytest.mark.skipif(not installed(), reason="the agreement check needs an engine")

SEEN = Preprocessing(size=32)
needs_paddle = pytest.mark.skipif("paddle" not in installed(), reason="needs PaddlePaddle")


def architecture(**changes):
    fields = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
    return XCiTArchitecture(**{**fields, **changes})


def decided(shape):
    weights = canonical.initial_weights(shape, 0)
    if "head.weight" in weights:
        weights["head.weight"] = 30 * weights["head.weight"]
    return weights


def model_of(shape, preprocessing=SEEN, names=None):
    metadata = Metadata(preprocessing=preprocessing, class_names=names)
    return WeightFile(decided(shape), shape, "xcite", metadata)


def foreign(path, **changes):
    """A file that says nothing of itself, as a stranger's loop saves it."""
    write_torch(path, decided(architecture(**changes)), wrap="model")
    return path


def picture(path, channels=3):
    coarse = np.random.default_rng(3).integers(0, 256, (5, 7, channels), np.uint8)
    planes = [
        np.asarray(Image.fromarray(coarse[..., c]).resize((70, 50), Image.Resampling.BICUBIC))
        for c in range(channels)
    ]
    Image.fromarray(np.stack(planes, axis=2)).save(path)
    return path


@pytest.mark.parametrize("size", ["24x40", "dynamic"])
def test_four_channels_that_nobody_described(tmp_path, capsys, size):
    file = foreign(tmp_path / "four.pth", in_chans=4)
    out = tmp_path / "b"
    given = ("export", file, out, "--size", size, "--format", "onnx")
    code, said, errors = run(capsys, *given)
    assert code in (0, None), errors
    assert "a mean and deviation of 0.5 are assumed" in said
    assert read_info(out).preprocessing.mean == (0.5,) * 4
    normalised = ("--mean", "0.1,0.2,0.3,0.4", "--std", "1,1,1,2")
    code, said, errors = run(capsys, *given, *normalised)
    assert code in (0, None), errors
    assert "assumed" not in said
    seen = read_info(out).preprocessing
    assert (seen.mean, seen.std) == ((0.1, 0.2, 0.3, 0.4), (1, 1, 1, 2))
    shown = picture(tmp_path / "one.png", channels=4)
    code, said, errors = run(capsys, "predict", out, shown, "--json")
    assert code in (0, None), errors
    (answer,) = json.loads(said)
    assert [row["name"] for row in answer["classes"]] == [
        name for name, _ in Predictor(out).predict(shown)[0]
    ]


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"format": "onnx"}, 1e-5),
        ({"format": "onnx", "precision": "f16", "dynamic": True}, 1e-2),
        ({"format": "openvino", "size": (24, 40)}, 1e-5),
        ({"format": "openvino", "precision": "bf16"}, 0.1),
        pytest.param({"format": "paddle"}, 1e-5, marks=needs_paddle),
    ],
)
@pytest.mark.parametrize(
    "shape",
    [architecture(num_classes=0), RegNetArchitecture(16, 16.0, 1.6, 8, 5, num_classes=0)],
    ids=["xcit", "regnet"],
)
def test_weights_without_classifier_give_embeddings(tmp_path, shape, options, tolerance):
    model, said = model_of(shape), []
    info = export(model, tmp_path / "b", ExportOptions(**options), called="x", say=said.append)
    assert info.answer == info.outputs[0] == "embedding"
    assert "top1_agreement" not in info.agreement
    width = shape.num_features
    assert f"note: x has no classifier: the bundle gives embeddings of {width} numbers" in said
    predictor = Predictor(tmp_path / "b")
    shown = picture(tmp_path / "one.png")
    found = predictor.embed([shown] * 3)
    engine = create_engine(installed()[0], shape)
    engine.load_weights(model.tensors)
    expected = engine.predict(predictor.images(predictor.pixels(shown)[None]))
    assert found.shape == (3, width)
    np.testing.assert_allclose(found[:1], expected, atol=tolerance * np.abs(expected).max())
    assert predictor.embed([]).shape == (0, width)


def test_embeddings_are_not_taken_for_classes(tmp_path, capsys):
    file = foreign(tmp_path / "headless.pth", num_classes=0)
    out = tmp_path / "b"
    code, said, errors = run(capsys, "export", file, out, "--size", "32")
    assert code in (0, None), errors
    assert ".embed(pictures)" in said
    assert "xcite serve" not in said
    shown = picture(tmp_path / "one.png")
    message = "gives embeddings of 32 numbers, no classes; in Python, Predictor.embed"
    for asked in (
        ("predict", out, shown),
        ("predict", out / "model.xml", shown),
        ("serve", out, "--port", "0"),
        ("serve", out, "--port", "0", "--workers", "2"),
        ("evaluate", out, "--data", "digits"),
    ):
        code, _, errors = run(capsys, *asked)
        assert code == 2
        assert message in errors
        assert errors.count("\n") == 1
    predictor = Predictor(out)
    for ask in (predictor.predict, lambda p: predictor.logits(predictor.images(p))):
        with pytest.raises(XciteError, match="no classes"):
            ask(np.zeros((1, 32, 32, 3), np.uint8))
    code, _, errors = run(capsys, "predict", file, shown)
    assert code == 2
    assert "`xcite export` makes a bundle of embeddings" in errors
    export(model_of(architecture()), tmp_path / "classes", ExportOptions(format="onnx"))
    with pytest.raises(XciteError, match="gives classes; for embeddings export"):
        Predictor(tmp_path / "classes").embed(shown)


def test_accuracy_of_embeddings_is_not_measured(tmp_path, capsys):
    file = foreign(tmp_path / "headless.pth", num_classes=0)
    int8 = ("--precision", "int8", "--pictures", "digits")
    for more in ((), int8):
        code, _, errors = run(
            capsys, "export", file, tmp_path / "b", "--validation", "digits", *more
        )
        assert code == 2
        assert "no accuracy can be measured" in errors
        assert not (tmp_path / "b").exists()


def test_a_bundle_of_embeddings_teaches_nobody(tmp_path):
    from xcite.recipe import Recipe
    from xcite.training.teachers.facts import program_facts

    export(model_of(architecture(num_classes=0)), tmp_path / "b", ExportOptions(format="onnx"))
    recipe = Recipe.model_construct(preprocessing=SEEN)
    with pytest.raises(XciteError, match="gives embeddings of 32 numbers"):
        program_facts(str(tmp_path / "b" / "model.onnx"), recipe)


def test_a_thousand_classes_are_not_imagenets_by_their_number(tmp_path, capsys):
    file = foreign(tmp_path / "mine.pth", num_classes=1000)
    out = tmp_path / "b"
    given = ("export", file, out, "--size", "32", "--format", "onnx")
    code, said, errors = run(capsys, *given)
    assert code in (0, None), errors
    assert "does not name its 1000 classes: the answers are numbers" in said
    assert read_info(out).class_names == []
    (name, _), *_ = Predictor(out).predict(picture(tmp_path / "one.png"))[0]
    assert name.isdigit()
    shown = picture(tmp_path / "one.png")
    for model in (file, out):
        code, said, errors = run(capsys, "predict", model, shown, "--json")
        assert code in (0, None)
        assert "does not name its 1000 classes: the answers are numbers" in errors
        assert all(row["name"].isdigit() for row in json.loads(said)[0]["classes"])
    code, said, _ = run(capsys, *given, "--classes", "imagenet")
    assert code in (0, None)
    assert "does not name" not in said
    assert read_info(out).class_names == imagenet_classes()


def test_class_names_from_a_file(tmp_path, capsys):
    file, names = foreign(tmp_path / "mine.pth", num_classes=3), tmp_path / "names.txt"
    given = ("export", file, tmp_path / "b", "--size", "32", "--format", "onnx", "--classes", names)
    names.write_text("0 cat\n1 dog\n2 猫 hai\n", encoding="utf-8")
    code, _, errors = run(capsys, *given)
    assert code in (0, None), errors
    assert read_info(tmp_path / "b").class_names == ["cat", "dog", "猫 hai"]
    names.write_text("cat\ndog\n")
    code, _, errors = run(capsys, *given)
    assert code == 2
    assert "names 2 classes, the weights have 3" in errors
    assert read_info(tmp_path / "b").class_names == ["cat", "dog", "猫 hai"]


@pytest.mark.parametrize("precision", ["float16", "f16"])
def test_float16_is_checked_within_its_own_tolerance(tmp_path, capsys, precision):
    file = foreign(tmp_path / "mine.pth")
    given = ("export", file, tmp_path / "b", "--size", "32", "--format", "onnx", "--opset", "17")
    code, _, errors = run(capsys, *given, "--precision", precision)
    assert code in (0, None), errors
    info = read_info(tmp_path / "b")
    report = info.agreement
    assert report["tolerance"] == pytest.approx(0.01 * report["largest_logit"])
    assert 1e-5 < report["largest_difference"] / report["largest_logit"] < 0.01
    model = onnx.load(tmp_path / "b" / "model.onnx")
    assert model.opset_import[0].version == 17
    for runtime in ("openvino", "onnxruntime"):
        predictor = Predictor(tmp_path / "b", runtime=runtime)
        assert (info.precision, predictor.precision) == ("f16", "f32")
        assert predictor.notes == ["its float16 numbers are computed in float32 on a CPU"]
    code, _, errors = run(capsys, "predict", tmp_path / "b", picture(tmp_path / "one.png"))
    assert code in (0, None)
    assert "note: its float16 numbers" in errors


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_more_than_a_protobuf_holds_lies_beside_it(tmp_path, monkeypatch, format):
    model = model_of(architecture())
    monkeypatch.setattr(onnx_file, "LARGEST", 10_000)
    info = export(model, tmp_path / "b", ExportOptions(format=format))
    if format == "onnx":
        assert set(info.files) == {"model.onnx", "model.onnx.data"}
        assert (tmp_path / "b" / "model.onnx").stat().st_size < 200_000
    else:
        assert set(info.files) == {"model.xml", "model.bin"}
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    expected = create_engine(installed()[0], model.architecture)
    expected.load_weights(model.tensors)
    for runtime in ("openvino", "onnxruntime") if format == "onnx" else ("openvino",):
        found = Predictor(tmp_path / "b", runtime=runtime).logits(images)
        np.testing.assert_allclose(found, expected.predict(images), atol=1e-4)
    if format == "onnx":
        data = tmp_path / "b" / "model.onnx.data"
        assert Predictor(data).bundle == tmp_path / "b"
        data.write_bytes(data.read_bytes()[:-1] + b"\0")
        with pytest.raises(XciteError, match="altered or belongs to another"):
            Predictor(tmp_path / "b")


# --- PaddleClas -------------------------------------------------------------------------------

NAMES = ["tench, Tinca tinca", "3", "yes", "猫", "a: b", "- x", "#hash", "~", "{0}", "e 1"]


def as_paddleclas(folder, file):
    """What predict_cls.py of PaddleClas does with a folder and a picture, in our own words."""
    from paddle import inference

    config = yaml.safe_load((folder / "inference.yml").read_text())
    asked = config["Global"]
    assert {"use_fp16", "enable_mkldnn", "cpu_num_threads", "enable_profile", "ir_optim"} <= {
        *asked
    }
    assert (asked["inference_model_dir"], asked["use_gpu"], asked["batch_size"]) == (".", False, 1)
    image = np.asarray(Image.open(file).convert("RGB"))
    for step in config["PreProcess"]["transform_ops"]:
        ((kind, given),) = step.items()
        if kind == "ResizeImage":
            assert given["backend"] == "pil"
            share = given["resize_short"] / min(image.shape[:2])
            size = [round(side * share) for side in image.shape[1::-1]]
            filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
            image = np.asarray(Image.fromarray(image).resize(size, filters[given["interpolation"]]))
        elif kind == "CropImage":
            width, height = given["size"]
            top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
            image = image[top : top + height, left : left + width]
        elif kind == "NormalizeImage":
            assert (given["order"], given["channel_num"]) == ("hwc", 3)
            mean, std = (np.array(given[n], np.float32) for n in ("mean", "std"))
            image = (image.astype(np.float32) * np.float32(given["scale"]) - mean) / std
        else:
            assert (kind, given) == ("ToCHWImage", None)
            image = image.transpose(2, 0, 1)
    wanted = inference.Config(str(folder), "inference")  # the names that it asks for
    wanted.disable_gpu()
    wanted.disable_glog_info()
    predictor = inference.create_predictor(wanted)
    handle = predictor.get_input_handle(predictor.get_input_names()[0])
    handle.copy_from_cpu(np.ascontiguousarray(image[None]))
    predictor.run()
    shares = predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()[0]
    (post,) = (
        config["PostProcess"][kind] for kind in config["PostProcess"]["main_indicator"].split()
    )
    best = shares.argsort()[-post["topk"] :][::-1]
    names = post.get("label_list") or [str(k) for k in range(len(shares))]
    return [(names[k], float(shares[k])) for k in best]


@pytest.mark.paddle
@needs_paddle
@pytest.mark.parametrize(
    ("size", "ratio", "interpolation", "named"),
    [
        (None, 1.0, "bicubic", True),
        ((24, 40), 0.875, "bilinear", True),
        (None, 0.9, "bicubic", False),
    ],
)
def test_paddleclas_reads_the_bundle(tmp_path, size, ratio, interpolation, named):
    seen = Preprocessing(size=40, crop_ratio=ratio, interpolation=interpolation)
    model = model_of(architecture(), seen, NAMES if named else None)
    info = export(model, tmp_path / "b", ExportOptions(format="paddle", size=size))
    assert info.outputs == ["probabilities", "logits"]
    assert set(info.files) == {"inference.json", "inference.pdiparams"}
    # sides for which its rounding of the resized one and of the crop are ours
    shown = tmp_path / "one.png"
    Image.open(picture(shown)).resize((90, 90)).save(shown)
    found = as_paddleclas(tmp_path / "b", shown)
    expected = Predictor(tmp_path / "b").predict(shown, top=5)[0]
    assert [name for name, _ in found] == [name for name, _ in expected]
    np.testing.assert_allclose([p for _, p in found], [p for _, p in expected], atol=2e-5)
    config = tmp_path / "b" / "inference.yml"
    config.write_text(config.read_text().replace("batch_size: 1", "batch_size: 8"))
    assert Predictor(tmp_path / "b").info == info  # people may edit it


@pytest.mark.paddle
@needs_paddle
@pytest.mark.parametrize(
    ("shape", "seen", "why"),
    [
        (architecture(num_classes=0), SEEN, "gives no classes"),
        (architecture(), Preprocessing(size=(24, 40)), "squares of RGB"),
        (architecture(in_chans=1), Preprocessing(size=32, mean=(0,), std=(1,)), "squares of RGB"),
    ],
)
def test_what_paddleclas_has_no_words_for_is_said(tmp_path, shape, seen, why):
    said = []
    options = ExportOptions(format="paddle")
    export(model_of(shape, seen), tmp_path / "b", options, say=said.append)
    assert any("no inference.yml for PaddleClas" in line and why in line for line in said)
    assert not (tmp_path / "b" / "inference.yml").exists()
    assert is_bundle(tmp_path / "b")


@pytest.mark.paddle
@needs_paddle
def test_a_paddle_bundle_in_anothers_place_leaves_nothing_of_it(tmp_path):
    model = model_of(architecture(), SEEN)
    for format in ("paddle", "onnx"):
        export(model, tmp_path / "b", ExportOptions(format=format))
        (tmp_path / "b" / "README.md").write_text("mine")
    assert {p.name for p in (tmp_path / "b").iterdir()} == {
        *("README.md", "bundle.json", "model.onnx")
    }
