"""Any number of processes trains the same run: the same pictures, mixed alike, the same losses."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import noise_runs
import numpy as np
import pytest

from xcite import recipe as recipes
from xcite.data.pipeline import epoch_length, view_order
from xcite.engines import create_engine, installed
from xcite.randomness import generator
from xcite.training import checkpoint, views_log
from xcite.training.run_folder import RunFolder
from xcite.variants import XCiTArchitecture
from xcite.weights import Metadata, save_weights

# Everything is on that several processes could do otherwise: mixing, drop path, repeated
# augmentation, accumulation, erasing, moving average, evaluation, a teacher; batches of an odd
# number of pairs, so that shares are unequal.
RECIPE = """
model: {{patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2, cls_attn_layers: 1, drop_path: 0.2}}
data: {{train: {pictures}/train, validation: {pictures}/val, workers: 0, repeats: 2}}
preprocessing: {{size: 16}}
augment: {{erasing: 0.3}}
optim: {{epochs: 10, batch: 36, accumulate: 2, lr: 5e-3, lr_per: null, warmup_epochs: 1, ema: 0.9,
  clip: 1.0}}
distill: {{loss: soft, tau: 2.0, teacher: {pictures}/teacher.safetensors}}
run: {{precision: float32, engine: {engine}, log_every: 1, keep: 0, record_views: true}}
"""
STEPS = 50
WORKER = str(Path(__file__).with_name("process_worker.py"))
PATH = os.pathsep.join(
    filter(None, [str(Path(noise_runs.__file__).parent), os.environ.get("PYTHONPATH")])
)
# Sums over a batch are rounded in another order; 50 steps of AdamW enlarge that.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = noise_runs.make_both(tmp_path_factory.mktemp("pictures"), per_class=64)
    architecture = XCiTArchitecture(8, 16, 1, 2, num_classes=3)
    teacher = create_engine(installed()[0], architecture, seed=1)
    metadata = Metadata(architecture=architecture.fields(), class_names=["a", "b", "c"])
    save_weights(folder / "teacher.safetensors", teacher.read_weights(), metadata)
    return folder


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def environments(name, size):
    """What torchrun and `paddle.distributed.launch` set for each process."""
    ports = free_ports(size + 1)
    endpoints = [f"127.0.0.1:{port}" for port in ports[:size]]
    for rank in range(size):
        if name == "torch":
            yield {
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(ports[size]),
            }
        else:
            yield {
                "PADDLE_TRAINER_ID": str(rank),
                "PADDLE_TRAINERS_NUM": str(size),
                "PADDLE_LOCAL_SIZE": str(size),
                "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
                "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
                "PADDLE_MASTER": f"127.0.0.1:{ports[size]}",
                "PADDLE_DISTRI_BACKEND": "gloo",
            }


def train(name, size, *arguments, stop=None):
    """Run `xcite train` in ``size`` processes; with ``stop`` they get a Ctrl-C in that step."""
    program = ["-m", "xcite"] if stop is None else [WORKER, str(stop)]
    extra = environments(name, size) if size > 1 else [{}]
    running = [
        subprocess.Popen(
            [sys.executable, *program, "train", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": PATH, "OMP_WAIT_POLICY": "PASSIVE", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for environment in extra
    ]
    try:
        for process in running:
            text, _ = process.communicate(timeout=300)
            assert process.returncode == (0 if stop is None else 130), text
    finally:
        for process in running:
            process.kill()


def begin(name, size, pictures, folder, *settings):
    path = folder.with_suffix(".yaml")
    path.write_text(RECIPE.format(pictures=pictures, engine=name), encoding="utf-8")
    chosen = [word for setting in settings for word in ("--set", setting)]
    train(name, size, path, "--out", folder, *chosen)
    return RunFolder(folder)


def losses(run):
    return np.array([row["loss"] for row in run.rows() if row["kind"] == "step"])


def assert_same_run(found, expected):
    assert len(losses(found)) == STEPS
    np.testing.assert_allclose(losses(found), losses(expected), rtol=TOLERANCE)
    assert views_log.read(found.path) == views_log.read(expected.path)
    accuracies = [
        [row for row in run.rows() if row["kind"] == "epoch"] for run in (found, expected)
    ]
    for mine, theirs in zip(*accuracies, strict=True):
        assert mine["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-3)
    state, other = (checkpoint.load(run.checkpoint).state for run in (found, expected))
    assert state.keys() == other.keys()
    for key in state:
        if key.startswith("ema") and "running" in key:
            np.testing.assert_allclose(state[key], other[key], rtol=1e-3, atol=1e-3, err_msg=key)


@pytest.fixture(scope="module")
def alone(pictures, tmp_path_factory):
    """A run of one process for each engine."""
    runs = {}

    def make(name):
        if name not in runs:
            folder = tmp_path_factory.mktemp("alone") / name
            runs[name] = begin(name, 1, pictures, folder)
        return runs[name]

    return make


@pytest.mark.parametrize("name", installed())
def test_two_processes_train_as_one(name, pictures, alone, tmp_path):
    assert_same_run(begin(name, 2, pictures, tmp_path / "two"), alone(name))


@pytest.mark.parametrize("name", installed()[:1])
def test_every_view_is_used_once(name, alone):
    run = alone(name)
    recipe = recipes.load(str(run.recipe))
    used = views_log.read(run.path)
    assert len(used) == STEPS
    for epoch in range(recipe.optim.epochs):
        found = [view for (when, _), views in used.items() if when == epoch + 1 for view in views]
        order = generator(recipe.run.seed, "shuffle", epoch).permutation(192)
        assert epoch_length(192, 2) == 192
        expected = view_order(order, 2)[: STEPS // 10 * 36]
        assert sorted(found) == sorted(map(tuple, expected.tolist()))
        assert len(set(found)) == len(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", installed())
def test_three_and_four_processes_train_as_one(name, pictures, alone, tmp_path):
    for size in (3, 4):
        assert_same_run(begin(name, size, pictures, tmp_path / str(size)), alone(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", installed())
def test_a_cached_teacher_serves_any_number_of_processes(name, pictures, alone, tmp_path):
    recipe = tmp_path / "teach.yaml"
    recipe.write_text(RECIPE.format(pictures=pictures, engine=name), encoding="utf-8")
    cache = tmp_path / "answers"
    teach = [sys.executable, "-m", "xcite", "teach", recipe, "--out", cache]
    subprocess.run(list(map(str, teach)), check=True, capture_output=True)
    settings = [f"distill.cache={cache}", "distill.top=3"]
    expected = begin(name, 1, pictures, tmp_path / "one", *settings)
    # float16 answers
    np.testing.assert_allclose(losses(expected), losses(alone(name)), rtol=1e-2)
    for size in (2, 4):
        assert_same_run(begin(name, size, pictures, tmp_path / f"{size}", *settings), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", installed())
def test_a_run_goes_on_in_any_number_of_processes(name, pictures, alone, tmp_path):
    """1 -> 2 -> 4 -> 1 processes, always stopped within an epoch."""
    run = tmp_path / "run"
    path = tmp_path / "run.yaml"
    path.write_text(RECIPE.format(pictures=pictures, engine=name), encoding="utf-8")
    for size, stop in ((1, 12), (2, 23), (4, 38)):
        begun = ["--resume", run] if run.exists() else [path, "--out", run]
        train(name, size, *begun, stop=stop)
        assert checkpoint.load(RunFolder(run).checkpoint).position.done == stop
    train(name, 1, "--resume", run)
    assert_same_run(RunFolder(run), alone(name))
