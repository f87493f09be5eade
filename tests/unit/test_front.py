"""benchmarks/front.py: which points are on the front, and a small run with peers."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from xcite import canonical
from xcite.export import graph
from xcite.variants import XCiTArchitecture

pytest.importorskip("onnx")
pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
pytest.importorskip("matplotlib")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "front.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("front", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["front"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["front"]


def test_the_front_is_what_nothing_beats_in_both(script):
    points = [
        script.Point("fast", 224, 70.0, speed=100),
        script.Point("unknown", 224, None, speed=1000),
        script.Point("beaten", 224, 69.0, speed=90),
        script.Point("as good but slower", 224, 70.0, speed=99),
        script.Point("exact", 224, 80.0, speed=10),
        script.Point("as fast but worse", 224, 79.0, speed=10),
    ]
    assert [point.name for point in script.front(points)] == ["fast", "exact"]
    of_zen3 = [point.name for point in script.front(script.ZEN3)]
    assert of_zen3 == [
        "mobilenetv4_conv_small",
        "efficientnet_b0",
        "mobilenetv4_conv_medium",
        "edgenext_small",
        "xcit_small_12_p16",
    ]


def test_published_accuracy_is_known_at_published_sizes_only(script):
    found = script.variants(["xcit_nano_12_p16", "xcit_small_12_p8"], [160, 224, 384])
    assert [(point.name, point.size, point.top1) for point in found] == [
        ("xcit_nano_12_p16", 160, None),
        ("xcit_nano_12_p16", 224, 72.2),
        ("xcit_nano_12_p16", 384, 75.4),
        ("xcit_small_12_p8", 160, None),
        ("xcit_small_12_p8", 224, 84.2),
        ("xcit_small_12_p8", 384, 85.1),
    ]


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_a_small_run_with_peers(tmp_path):
    shape = XCiTArchitecture(patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=10)
    proto = graph.build(canonical.initial_weights(shape, 0), shape, size=(48, 48))
    (tmp_path / "peer.onnx").write_bytes(proto.SerializeToString())
    peers = [f"an_onnx@48:70.5:{tmp_path / 'peer.onnx'}"]
    torch = None
    if importlib.util.find_spec("torch"):
        import torch

        net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        torch.jit.trace(net, torch.zeros(1, 3, 48, 48)).save(tmp_path / "peer.pt")
        peers.append(f"a_script@48:60:{tmp_path / 'peer.pt'}")
    small = ("--models", "xcit_nano_12_p16", "--sizes", 32, "--batch", 1, "--threads", 1)
    done = run(
        *(*small, "--rounds", 1, "--limit", 1),
        *("--picture", tmp_path / "front.png", "--peers", *peers),
    )
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    found = {row[0]: row for row in rows[2:]}
    assert found["xcit_nano_12_p16"][1:3] == ["32", "none published"]
    assert found["xcit_nano_12_p16"][5] == ""
    assert found["an_onnx"][1:3] == ["48", "70.5"]
    assert found["an_onnx"][5] == "yes"
    assert found["an_onnx"][3].split()[0] in ("openvino", "onnxruntime")
    if torch:
        assert found["a_script"][3] == "torch f32"
    speeds = [float(row[4]) for row in rows[2:]]
    assert speeds == sorted(speeds, reverse=True)
    assert min(speeds) > 0
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("given", ["nonsense", "a@b:80:{}", "a:high:{}", "a:80:{}/none.onnx"])
def test_a_peer_that_is_none_is_refused(given, tmp_path):
    done = run("--peers", given.format(tmp_path))
    assert done.returncode == 2
    assert "is not name:accuracy:path" in done.stderr or "there is no file" in done.stderr
