"""`xcite export` from a weights file to a checked bundle, and what it refuses."""

import io
import json
import socket
import threading

import numpy as np
import pytest
from PIL import Image
from small_runs import answered as run

from xcite import canonical
from xcite.engines import create_engine, installed
from xcite.errors import XciteError
from xcite.export import graph_builder
from xcite.export.export import export
from xcite.export.options import ExportOptions
from xcite.preprocessing import Preprocessing
from xcite.runtime.predictor import Predictor
from xcite.variants import RegNetArchitecture, XCiTArchitecture
from xcite.weights import Metadata, WeightFile, save_weights

pytest.importorskip("openvino")
pytest.importorskip("sklearn")

ARCHITECTURE = XCiTArchitecture(patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=10)
PREPROCESSING = Preprocessing(size=32, mean=(0.3,), std=(0.4,))
GREY = XCiTArchitecture(
    patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=10, in_chans=1
)
NAMES = [f"digit {k}" for k in range(10)]
ENGINE = installed()[-1] if installed() else None

pytestmark = pytest.mark.skipif(ENGINE is None, reason="the agreement check needs an engine")


def decided(architecture):
    """Drawn weights with an opinion: fresh ones say nearly the same of every picture."""
    weights = canonical.initial_weights(architecture, 0)
    head = "head.weight" if "head.weight" in weights else "head.fc.weight"
    weights[head] = 30 * weights[head]
    return weights


def model_of(architecture, preprocessing=PREPROCESSING, names=None):
    """What `open_weights` would give of a file with such weights."""
    metadata = Metadata(preprocessing=preprocessing, class_names=names)
    return WeightFile(decided(architecture), architecture, "xcite", metadata)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "grey.safetensors"
    metadata = Metadata(
        architecture=GREY,
        preprocessing=PREPROCESSING,
        class_names=[str(k) for k in range(10)],
        provenance={"source": "drawn"},
    )
    save_weights(path, decided(GREY), metadata)
    return path


def test_the_command_writes_a_checked_bundle(weights_file, tmp_path, capsys):
    out = tmp_path / "bundle"
    code, said, errors = run(capsys, "export", weights_file, out, "--validation", "digits")
    assert code in (0, None), errors
    assert "top-1 agrees on 100%" in said
    data = json.loads((out / "bundle.json").read_text())
    assert data["preprocessing"]["mean"] == [0.3]
    assert data["provenance"]["source"] == "drawn"
    assert data["agreement"]["largest_difference"] <= data["agreement"]["tolerance"]
    assert data["accuracy"]["before"] == data["accuracy"]["after"]
    assert data["accuracy"]["pictures"] == 359
    predictor = Predictor(out)
    assert predictor.class_names == [str(k) for k in range(10)]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    "options",
    [
        {"format": "onnx"},
        {"format": "onnx", "dynamic": True},
        {"format": "openvino", "dynamic": True},
        {"format": "openvino", "size": (24, 40)},
        {"format": "openvino", "precision": "bf16"},
        pytest.param(
            {"format": "paddle"},
            marks=[
                pytest.mark.paddle,
                pytest.mark.skipif("paddle" not in installed(), reason="needs PaddlePaddle"),
            ],
        ),
    ],
    ids=str,
)
def test_every_format_runs_on_its_runtimes(options, tmp_path):
    model = model_of(ARCHITECTURE, Preprocessing(size=32))
    info = export(model, tmp_path / "b", ExportOptions(**options))
    engine = create_engine(info.agreement["reference"], ARCHITECTURE)
    engine.load_weights(model.tensors)
    sizes = [info.size or (32, 32)] + ([(20, 52)] if info.size is None else [])
    runtimes = {"onnx": ["openvino", "onnxruntime"]}.get(info.format, [info.format])
    for runtime in runtimes:
        predictor = Predictor(tmp_path / "b", runtime=runtime)
        for height, width in sizes:
            images = np.random.default_rng(0).standard_normal((6, 3, height, width))
            images = images.astype(np.float32)
            expected = engine.predict(images)
            # bfloat16 keeps 8 bits of every product; float32 graphs differ by rounding alone
            share = 0.1 if info.precision == "bf16" else 1e-4
            tolerance = share * np.abs(expected).max()
            for _ in range(3):  # the same shape again: Paddle's oneDNN keeps weights by shape
                found = predictor.logits(images)
                np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
            if "class_attention" in info.outputs:
                maps = predictor.attention(images)
                for layer, found in enumerate(engine.attention(images).classes):
                    np.testing.assert_allclose(maps[:, layer], found, atol=0.01 * share**0.5)


def test_int8_is_calibrated_measured_and_gated(weights_file, tmp_path, capsys):
    pytest.importorskip("nncf")
    pytest.importorskip("grain")
    out = tmp_path / "bundle"
    common = ("export", weights_file, out, "--precision", "int8")
    code, _, errors = run(capsys, *common)
    assert code == 2
    assert "int8 needs --pictures" in errors
    data = ("--pictures", "digits", "--validation", "digits")
    code, said, errors = run(capsys, *common, *data, "--max-drop", "5")
    assert code in (0, None), errors
    assert "FakeQuantize" in (out / "model.xml").read_text()
    accuracy = json.loads((out / "bundle.json").read_text())["accuracy"]
    assert accuracy["drop"] <= 5
    assert f"{accuracy['after']:.2f} % after" in said


def test_too_large_a_loss_fails_and_leaves_the_earlier_bundle(tmp_path):
    out = tmp_path / "bundle"
    first = export(model_of(GREY), out, ExportOptions(validation="digits"))
    with pytest.raises(XciteError, match=r"falls by 0\.00 points .* --max-drop allows -1"):
        export(model_of(GREY), out, ExportOptions(validation="digits", max_drop=-1.0))
    assert Predictor(out).info == first
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_graph_that_disagrees_is_not_written(weights_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(graph_builder, "LAYER_NORM_EPS", 1e-2)
    code, _, errors = run(capsys, "export", weights_file, tmp_path / "b", "--format", "onnx")
    assert code == 2
    assert "disagrees with the" in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_exporting_opens_no_connection(tmp_path, monkeypatch):
    attempts = []

    def refuse(self, address, *_):
        attempts.append(address)
        raise OSError("no network while exporting")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: refuse(None, a))
    precisions = ["f32", "bf16"]
    try:
        import nncf  # noqa: F401

        precisions.append("int8")
    except ImportError:
        pass
    for precision in precisions:
        data = {"pictures": "digits", "validation": "digits", "max_drop": 10}
        export(model_of(GREY), tmp_path / precision, ExportOptions(precision=precision, **data))
    for thread in threading.enumerate():  # telemetry would call from a thread of its own
        if thread is not threading.current_thread():
            thread.join(timeout=0.5)
    assert attempts == []


def test_regnet_teachers_export_too(tmp_path):
    shape = RegNetArchitecture(16, 16.0, 1.6, 8, 5, num_classes=10)
    model = model_of(shape, Preprocessing(size=64))
    info = export(model, tmp_path / "b", ExportOptions(format="onnx"))
    assert info.outputs == ["logits"]
    predictor = Predictor(tmp_path / "b")
    with pytest.raises(XciteError, match="gives no attention"):
        predictor.attention(np.zeros((1, 3, 64, 64), np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "zero"], "--size is 'zero'"),
        (["--size", "0x3"], "--size is '0x3'"),
        (["--format", "tflite"], "choose auto, onnx, openvino or paddle"),
        (["--precision", "f8"], "choose auto, f32, f16, bf16 or int8"),
        (["--precision", "float16"], "f16 is for --format onnx"),
        (["--opset", "17"], "leave --opset out"),
        (["--format", "onnx", "--opset", "12"], "--opset is 12; choose 13 to 23"),
        (["--classes", "imagenet"], "imagenet names 1000 classes, the weights have 10"),
        (["--mean", "0.5"], "--mean and --std belong together"),
        (["--mean", "0.5,0.5", "--std", "1,1"], "--mean has 2 values for 1 channels"),
        (["--mean", "half", "--std", "1"], "--mean is 'half'"),
        (["--mean", "0.5", "--std", "0"], "std must be above 0"),
        (["--format", "onnx", "--precision", "bf16"], "bf16 is for --format openvino"),
        (["--size", "24x40", "--validation", "digits"], "the middle of a square"),
        (["--format", "paddle", "--engine", "torch"], "leave --engine out"),
        (["--pictures", "/nowhere"], "/nowhere"),
    ],
)
def test_contradictions_are_refused_in_one_line(weights_file, tmp_path, capsys, options, message):
    code, _, errors = run(capsys, "export", weights_file, tmp_path / "b", *options)
    assert code == 2
    assert message in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "b"
    model = model_of(ARCHITECTURE, Preprocessing(size=32), NAMES)
    export(model, folder, ExportOptions(format="onnx"))
    return folder


def photograph(seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize((70, 50), Image.Resampling.BICUBIC)


def test_predict_takes_every_kind_of_picture(bundle, tmp_path):
    picture = photograph(1)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    (tmp_path / "one.png").write_bytes(buffer.getvalue())
    kinds = [tmp_path / "one.png", str(tmp_path / "one.png"), buffer.getvalue()]
    kinds += [np.asarray(picture), picture]
    predictor = Predictor(bundle)
    answers = predictor.predict(kinds, top=3)
    assert len(answers) == 5
    assert all(answer == answers[0] for answer in answers)
    assert predictor.predict(picture, top=3) == [answers[0]]
    names, values = zip(*answers[0], strict=True)
    assert set(names) <= set(NAMES)
    assert list(values) == sorted(values, reverse=True)
    everything = predictor.predict(picture, top=99)[0]
    assert len(everything) == 10
    assert sum(value for _, value in everything) == pytest.approx(1)
    with pytest.raises(XciteError):
        predictor.predict(b"no picture")


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_batches_and_other_calls_change_no_answer(bundle, runtime, mode):
    pytest.importorskip(runtime)
    predictor = Predictor(bundle, runtime=runtime, mode=mode, threads=2)
    pixels = np.stack([predictor.pixels(photograph(k)) for k in range(22)])
    images = predictor.images(pixels)
    alone = np.concatenate([predictor.logits(images[k : k + 1]) for k in range(22)])
    results = {}

    def ask(name, count):
        results[name] = [predictor.logits(images[:count]) for _ in range(3)]

    threads = [threading.Thread(target=ask, args=(k, k)) for k in (1, 5, 16, 22)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for count, answers in results.items():
        for answer in answers:
            np.testing.assert_allclose(answer, alone[:count], rtol=0, atol=1e-5)


def test_results_stay_when_the_next_call_comes(bundle):
    predictor = Predictor(bundle)
    images = predictor.images(np.stack([predictor.pixels(photograph(k)) for k in range(2)]))
    first = predictor.logits(images[:1])
    before = first.copy()
    predictor.logits(images[1:])
    np.testing.assert_array_equal(first, before)


def test_wrong_input_and_options_are_refused(bundle):
    predictor = Predictor(bundle)
    for images, message in (
        (np.zeros((1, 3, 32, 32)), "expected float32"),
        (np.zeros((1, 1, 32, 32), np.float32), "expected float32"),
        (np.zeros((1, 3, 32, 40), np.float32), "made for 32 x 32"),
        (np.zeros((0, 3, 32, 32), np.float32), "batch is empty"),
    ):
        with pytest.raises(XciteError, match=message):
            predictor.logits(images)
    with pytest.raises(XciteError, match="top is 0"):
        predictor.predict(photograph(0), top=0)
    for options, message in (
        ({"mode": "fast"}, "latency or throughput"),
        ({"threads": 0}, "at least 1"),
        ({"runtime": "paddle"}, "does not read onnx"),
        ({"precision": "int8"}, "cannot run in int8"),
        ({"runtime": "onnxruntime", "precision": "bf16"}, "no bfloat16"),
    ):
        with pytest.raises(XciteError, match=message):
            Predictor(bundle, **options)


def test_every_way_to_ask_an_oblong_bundle_gives_the_same(tmp_path, capsys):
    model = model_of(ARCHITECTURE, Preprocessing(size=32), NAMES)
    export(model, tmp_path / "b", ExportOptions(format="onnx", size=(24, 40)))
    photograph(3).save(tmp_path / "one.png")
    code, said, errors = run(capsys, "predict", tmp_path / "b", tmp_path / "one.png", "--json")
    assert code in (0, None), errors
    (answer,) = json.loads(said)
    expected = Predictor(tmp_path / "b").predict(tmp_path / "one.png")
    assert [row["name"] for row in answer["classes"]] == [name for name, _ in expected[0]]
    found = [row["probability"] for row in answer["classes"]]
    np.testing.assert_allclose(found, [share for _, share in expected[0]], atol=1e-5)


def test_a_model_of_oblong_inputs_is_exported_measured_and_asked(tmp_path, capsys):
    seen = Preprocessing(size=(24, 40))
    digits = [str(digit) for digit in range(10)]
    model = model_of(ARCHITECTURE, seen, digits)
    options = ExportOptions(format="onnx", validation="digits")
    info = export(model, tmp_path / "b", options)
    assert info.size == (24, 40)
    assert info.preprocessing == seen
    assert json.loads((tmp_path / "b" / "bundle.json").read_text())["size"] == [24, 40]
    predictor = Predictor(tmp_path / "b")
    photograph(3).save(tmp_path / "one.png")
    assert predictor.pixels(tmp_path / "one.png").shape == (24, 40, 3)
    code, said, errors = run(capsys, "predict", tmp_path / "b", tmp_path / "one.png", "--json")
    assert code in (0, None), errors
    (answer,) = json.loads(said)
    expected = predictor.predict(tmp_path / "one.png")[0]
    assert [row["name"] for row in answer["classes"]] == [name for name, _ in expected]
    square = export(model, tmp_path / "s", ExportOptions(format="onnx", size=(32, 32)))
    assert square.preprocessing == Preprocessing(size=32)


def test_weights_that_say_little_are_exported_with_a_note(tmp_path):
    said = []
    model = model_of(GREY, preprocessing=None)
    info = export(model, tmp_path / "b", ExportOptions(size=(32, 32)), called="x", say=said.append)
    assert info.preprocessing == Preprocessing(size=32, mean=(0.5,), std=(0.5,))
    assert said[0].startswith("note: x does not say how its pictures were prepared")


def test_a_regnet_in_int8_is_refused(tmp_path):
    shape = RegNetArchitecture(16, 16.0, 1.6, 8, 5, num_classes=10)
    options = ExportOptions(precision="int8", pictures="digits", validation="digits")
    with pytest.raises(XciteError, match="int8 is made for XCiT"):
        export(model_of(shape), tmp_path / "b", options)
    assert list(tmp_path.iterdir()) == []
