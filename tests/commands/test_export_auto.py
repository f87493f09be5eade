"""`xcite export --format auto --precision auto`: every way tried, the fastest that passes taken."""

import importlib.util
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from small_runs import answered as run

from xcite import canonical
from xcite.engines import installed
from xcite.errors import XciteError
from xcite.export.automatic import Way, _unsteady, hopeless, ways
from xcite.export.export import export
from xcite.export.options import ExportOptions
from xcite.preprocessing import Preprocessing
from xcite.processor import Processor, this_processor
from xcite.runtime.bundle import read_info, seal_folder
from xcite.runtime.precision import native
from xcite.runtime.predictor import Predictor
from xcite.runtime.turns import LEAST, WARM_UP, by_turns
from xcite.variants import RegNetArchitecture, XCiTArchitecture
from xcite.weights import Metadata, WeightFile, save_weights

pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")
pytestmark = pytest.mark.skipif(not installed(), reason="the agreement check needs an engine")

SHAPE = XCiTArchitecture(patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=10)
AUTO = ExportOptions(format="auto", precision="auto")
BOTH = ("--format", "auto", "--precision", "auto")
NEW = Processor("", "", "", frozenset({"avx2", "avx512bw", "avx512_vnni", "avx512_bf16"}))
CASCADE_LAKE = Processor("", "", "", frozenset({"avx2", "avx512bw", "avx512_vnni"}))
ZEN3 = Processor("", "", "", frozenset({"avx2"}))


def model(**changes):
    """Weights with an opinion, some of them changed."""
    weights = canonical.initial_weights(SHAPE, 0)
    weights["head.weight"] = 30 * weights["head.weight"]
    metadata = Metadata(architecture=SHAPE, preprocessing=Preprocessing(size=32))
    return WeightFile({**weights, **changes}, SHAPE, "xcite", metadata)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    made = model()
    save_weights(path, made.tensors, made.metadata)
    return path


def test_all_are_tried_and_the_fastest_is_taken(file, tmp_path, capsys):
    out = tmp_path / "b"
    given = ("--pictures", "digits", "--validation", "digits", "--max-drop", "100")
    code, said, errors = run(capsys, "export", file, out, *BOTH, *given)
    assert code == 0, errors
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    info = read_info(out)
    chosen, tried = info.chosen, info.chosen.tried
    timed = [row for row in tried if "images_per_second" in row]
    kinds = {(row["format"], row["precision"]) for row in timed}
    assert {("openvino", "f32"), ("onnx", "f32")} <= kinds
    assert (("openvino", "bf16") in kinds) == native("bf16", this_processor())
    int8 = native("int8", this_processor()) and importlib.util.find_spec("nncf") is not None
    assert (("openvino", "int8") in kinds) == int8
    fastest = max(timed, key=lambda row: row["images_per_second"])
    assert (info.format, info.precision, chosen.runtime) == (
        fastest["format"],
        fastest["precision"],
        fastest["runtime"],
    )
    assert chosen.images_per_second == fastest["images_per_second"] > 0
    assert chosen.machine["processor"] == this_processor().name
    assert info.accuracy["pictures"] == 359
    assert {path.name for path in out.iterdir()} - {"inference.yml"} == {"bundle.json", *info.files}
    predictor = Predictor(out)
    assert predictor.runtime == chosen.runtime
    assert predictor.logits(np.zeros((1, 3, 32, 32), np.float32)).shape == (1, 10)
    table = [line.split() for line in said.splitlines()]
    assert ["format", "precision", "runtime", "images/s"] in table
    for row in tried:
        way = [row["format"], row["precision"], row["runtime"]]
        (line,) = (line for line in table if line[:3] == way)
        assert (line[-1] == "chosen") == (row is fastest)


def test_only_what_is_open_is_tried(file, tmp_path, capsys):
    out = tmp_path / "b"
    code, _, errors = run(capsys, "export", file, out, "--format", "onnx", "--precision", "auto")
    assert code == 0, errors
    rows = [
        (row["format"], row["precision"], row["runtime"]) for row in read_info(out).chosen.tried
    ]
    assert rows == [("onnx", "f32", "openvino"), ("onnx", "f32", "onnxruntime")]
    code, _, errors = run(capsys, "export", file, tmp_path / "c", *BOTH, "--opset", "17")
    assert code == 2
    assert "leave --opset out" in errors
    code, _, errors = run(capsys, "export", file, tmp_path / "c", "--format", "best")
    assert code == 2
    assert "choose auto, onnx, openvino or paddle" in errors
    assert not (tmp_path / "c").exists()


def test_what_disagrees_is_not_taken_however_fast(tmp_path):
    """So sharp a softmax turns over by the bits that bfloat16 lacks."""
    if not native("bf16", this_processor()):
        pytest.skip("bfloat16 is not tried on this processor")
    weights = model().tensors
    sharp = {}
    for block in ("blocks.0", "blocks.1"):
        factors = {"attn.temperature": 100, "attn.qkv.weight": 10, "attn.proj.weight": 30}
        for name, factor in factors.items():
            sharp[f"{block}.{name}"] = factor * weights[f"{block}.{name}"]
        sharp[f"{block}.gamma1"] = np.ones_like(weights[f"{block}.gamma1"])
    info = export(model(**sharp), tmp_path / "b", AUTO)
    assert info.precision == "f32"
    (bf16,) = (row for row in info.chosen.tried if row["precision"] == "bf16")
    assert "disagrees" in bf16["left_out"]
    assert "images_per_second" not in bf16
    assert "nothing was written" not in bf16["left_out"]


def test_where_nothing_passes_nothing_is_left(tmp_path):
    (tmp_path / "b").mkdir()
    broken = model(**{"head.bias": np.full(10, np.nan, np.float32)})
    with pytest.raises(XciteError, match="no format and precision can be taken here") as error:
        export(broken, tmp_path / "b", AUTO)
    assert "openvino f32: the " in str(error.value)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "b").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.skipif(os.name == "nt", reason="no such signal for one process there")
def test_stopped_in_the_middle_it_leaves_the_earlier_bundle(file, tmp_path):
    export(model(), tmp_path / "b", ExportOptions())
    before = read_info(tmp_path / "b")
    command = [sys.executable, "-u", "-m", "xcite.cli", "export", str(file), str(tmp_path / "b")]
    process = subprocess.Popen(
        [*command, *BOTH], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("tries onnx"):  # one is made, the next is about to be
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert read_info(tmp_path / "b") == before


def test_the_runtime_that_was_chosen_is_taken_again(tmp_path):
    info = export(model(), tmp_path / "b", ExportOptions(format="onnx", precision="auto"))
    for runtime in ("onnxruntime", "openvino"):
        chosen = info.chosen.model_copy(update={"runtime": runtime})
        seal_folder(tmp_path / "b", info.model_copy(update={"chosen": chosen}))
        assert Predictor(tmp_path / "b").runtime == runtime
        other = "openvino" if runtime == "onnxruntime" else "onnxruntime"
        assert Predictor(tmp_path / "b", runtime=other).runtime == other
        assert Predictor(tmp_path / "b", precision="bf16").runtime == "openvino"
    (tmp_path / "b" / "bundle.json").write_text(
        (tmp_path / "b" / "bundle.json")
        .read_text()
        .replace('"runtime": "openvino"', '"runtime": 3')
    )
    with pytest.raises(XciteError, match="export again"):
        Predictor(tmp_path / "b")


def test_an_export_that_was_told_says_nothing_of_a_choice(tmp_path):
    export(model(), tmp_path / "b", ExportOptions())
    assert "chosen" not in json.loads((tmp_path / "b" / "bundle.json").read_text())


def test_a_way_without_instructions_is_not_tried():
    data = ExportOptions(format="auto", precision="auto", pictures="digits", validation="digits")
    bf16, int8 = (Way("openvino", precision, "openvino") for precision in ("bf16", "int8"))

    def why(way, processor, options=data, shape=SHAPE):
        return hopeless(way, options, shape, "paddle", processor)

    assert why(Way("openvino", "f32", "openvino"), ZEN3) is None
    assert why(bf16, ZEN3) == why(bf16, CASCADE_LAKE)
    assert why(bf16, ZEN3) == "this processor has no instructions for bf16"
    assert why(int8, ZEN3) == "this processor has no instructions for int8"
    assert why(int8, CASCADE_LAKE) is None
    assert why(bf16, NEW) is None
    assert why(int8, NEW) is None
    assert why(int8, NEW, AUTO) == "int8 needs --pictures and --validation"
    regnet = RegNetArchitecture(16, 16.0, 1.6, 8, 5)
    assert why(int8, NEW, shape=regnet) == "int8 is made for XCiT"
    named = ExportOptions(format="auto", precision="bf16")
    assert why(bf16, ZEN3, named) is None  # asked for by name
    paddle = Way("paddle", "f32", "paddle")
    assert why(paddle, NEW) is None
    assert "leave --engine out" in hopeless(paddle, data, SHAPE, "torch", NEW)


@pytest.mark.parametrize(
    ("options", "engines", "expected"),
    [
        ({}, ["torch"], ["openvino f32 None"]),
        (
            {"format": "auto"},
            ["paddle", "torch"],
            ["openvino f32 openvino", "onnx f32 onnxruntime", "paddle f32 paddle"],
        ),
        ({"format": "auto"}, ["torch"], ["openvino f32 openvino", "onnx f32 onnxruntime"]),
        ({"format": "auto", "precision": "f16"}, ["torch"], ["onnx f16 onnxruntime"]),
        ({"format": "auto", "precision": "bf16"}, ["paddle"], ["openvino bf16 openvino"]),
        ({"format": "paddle", "precision": "auto"}, ["torch"], ["paddle f32 paddle"]),
        (
            {"precision": "auto"},
            ["torch"],
            [f"openvino {precision} openvino" for precision in ("f32", "bf16", "int8")],
        ),
    ],
)
def test_what_the_options_leave_open(options, engines, expected):
    found = ways(ExportOptions(**options), installed=engines)
    assert [" ".join(map(str, way)) for way in found] == expected


def test_turns_alternate_and_end_in_time():
    order, now = [], [0.0]

    def work(name, seconds):
        order.append(name)
        now[0] += seconds

    works = [lambda: work("a", 1.0), lambda: work("b", 2.0)]
    times = by_turns(works, rounds=4, clock=lambda: now[0])
    assert times == [[1.0] * 4, [2.0] * 4]
    assert "".join(order) == "baab" * 3
    order.clear()
    times = by_turns(works, rounds=100, limit=0.0, clock=lambda: now[0])
    assert [len(each) for each in times] == [LEAST] * 2
    assert len(order) == 2 * (WARM_UP + LEAST)


def test_a_busy_machine_is_noticed():
    assert not _unsteady([1.0, 1.02, 1.1, 5.0, 0.99])  # one turn that was interrupted
    assert _unsteady([1.0, 1.0, 1.4, 2.0, 2.1])
