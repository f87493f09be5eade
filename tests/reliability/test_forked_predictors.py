"""A Predictor in other processes: forked, forked again, from a pool, and pickled.

A fork leaves the threads of a runtime behind, so every step has a time limit: a fault is a hang.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import xcite
from xcite.canonical import initial_weights
from xcite.engines import installed
from xcite.preprocessing import Preprocessing
from xcite.variants import XCiTArchitecture
from xcite.weights import Metadata, WeightFile

pytest.importorskip("openvino")
pytestmark = [
    pytest.mark.skipif(not installed(), reason="an export is compared with an engine"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]
NEEDS_PADDLE = pytest.mark.skipif("paddle" not in installed(), reason="needs PaddlePaddle")
RUNTIMES = [
    ("openvino", "openvino"),
    ("onnx", "openvino"),
    ("onnx", "onnxruntime"),
]

CODE = """
import multiprocessing, os, sys
import numpy as np
if "torch" in sys.argv:  # its OpenMP, loaded first, serves PaddlePaddle, too
    import torch
import xcite

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 20, 30, 3), np.uint8)

def names(predictor):
    return [[name for name, _ in answer] for answer in predictor.predict(PIXELS)]

def names_here():
    return names(predictor)

def in_child(action):
    pid = os.fork()
    if not pid:
        action()
        sys.exit(7)  # by the way of a usual end, which must not wait either
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def child():
    assert names_here() == expected
    assert in_child(grandchild) == 7

def grandchild():
    assert names_here() == expected
    print("flushed")

if __name__ == "__main__":
    predictor = xcite.Predictor(sys.argv[1], runtime=sys.argv[2])
    expected = names_here()
    assert in_child(child) == 7
    assert in_child(lambda: None) == 7  # one that never asks
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(names_here) == expected
        assert pool.apply(names, [predictor]) == expected
    if sys.argv[3] == "spawn":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(names, [predictor]) == expected
    assert names_here() == expected
    print("all answered")
"""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from xcite.export.export import export
    from xcite.export.options import ExportOptions

    place = tmp_path_factory.mktemp("forked")
    shape = XCiTArchitecture(patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=6)
    metadata = Metadata(architecture=shape, preprocessing=Preprocessing(size=48))
    weights = WeightFile(initial_weights(shape, 0), shape, "xcite", metadata)
    for kind in ("openvino", "onnx", "paddle"):
        if kind != "paddle" or "paddle" in installed():
            export(weights, place / kind, ExportOptions(format=kind))  # type: ignore[arg-type]
    (place / "program.py").write_text(CODE)
    return place


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run Python in a folder; a fault is a hang, hence the limit."""
    environment = {**os.environ, "PYTHONPATH": str(Path(xcite.__file__).parents[1])}
    environment.pop("OMP_NUM_THREADS", None)  # PaddlePaddle sets it here, for its own workers
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(("bundle", "runtime"), RUNTIMES)
@pytest.mark.parametrize("beside", ["", "torch"])
def test_forked_and_pickled(bundles: Path, bundle: str, runtime: str, beside: str) -> None:
    if beside and beside not in installed():
        pytest.skip("no PyTorch")
    # spawning once is slow enough
    started = "spawn" if runtime == "onnxruntime" and not beside else "fork"
    done = run(bundles, "program.py", bundle, runtime, started, beside)
    assert done.returncode == 0, done.stderr
    assert {"flushed", "all answered"} <= set(done.stdout.splitlines())  # Paddle says more


@NEEDS_PADDLE
@pytest.mark.parametrize("beside", ["", "torch"])
def test_paddle_is_refused_in_a_forked_process(bundles: Path, beside: str) -> None:
    if beside and beside not in installed():
        pytest.skip("no PyTorch")
    code = """
import multiprocessing, os, sys
import numpy as np
if "torch" in sys.argv:
    import torch
import xcite

PIXELS = np.zeros((2, 20, 30, 3), np.uint8)

def answers(predictor):
    return len(predictor.predict(PIXELS))

def made_anew():
    return answers(xcite.Predictor("paddle"))

if __name__ == "__main__":
    if not os.fork():  # before Paddle was loaded
        print("made in a child:", made_anew(), flush=True)
        sys.exit()
    os.wait()
    predictor = xcite.Predictor("paddle")
    assert answers(predictor) == 2
    with multiprocessing.get_context("fork").Pool(1) as pool:
        for ask in (lambda: pool.apply(answers, [predictor]), lambda: pool.apply(made_anew)):
            try:
                ask()
            except xcite.XciteError as error:
                print("refused:", error)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print("spawned:", pool.apply(answers, [predictor]))
    print("still here:", answers(predictor))
"""
    (bundles / "refused.py").write_text(code)
    done = run(bundles, "refused.py", beside)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if ": " in line]
    assert {"made in a child: 2", "spawned: 2", "still here: 2"} <= set(lines)
    assert sum(line.startswith("refused: bundle paddle cannot run here") for line in lines) == 2


def test_a_bundle_that_changed_is_refused_in_a_child(bundles: Path, tmp_path: Path) -> None:
    code = f"""
import os, sys, shutil
import xcite
from xcite.runtime.bundle import read_info, seal_folder
shutil.copytree({str(bundles / "onnx")!r}, "bundle")
predictor = xcite.Predictor("bundle")
seal_folder(predictor.bundle, predictor.info.model_copy(update={{"class_names": list("abcdef")}}))
os.chdir("/")
if not os.fork():
    try:
        predictor.predict(__import__("numpy").zeros((9, 9, 3), "uint8"))
    except xcite.XciteError as error:
        print(error)
    sys.exit()
os.wait()
"""
    done = run(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    assert "bundle bundle was exported again" in done.stdout
