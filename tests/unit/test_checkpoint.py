"""Checkpoints and run folders: whole or not at all, and damaged ones are refused."""

import json
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xcite import recipe as recipes
from xcite.errors import XciteError
from xcite.training import checkpoint, json_lines, run_folder
from xcite.training.checkpoint import Position
from xcite.training.run_folder import RunFolder, next_run_folder, stem
from xcite.weights.safetensors_files import write_safetensors

STATE = {"weights/a": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.array(7, np.int64)}
POSITION = Position(epoch=2, step=3, loss=0.1 + 0.2, best=97.5, best_epoch=1, fingerprint="f")


@contextmanager
def full_disk(at: int) -> Iterator[None]:
    """Files may not grow beyond ``at`` bytes: the kernel refuses, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_there_and_back(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.safetensors", STATE, POSITION)
    found = checkpoint.load(tmp_path / "c.safetensors")
    state, position = found.state, found.position
    assert position == POSITION
    assert state.keys() == STATE.keys()
    for name, array in STATE.items():
        assert state[name].dtype == array.dtype
        assert np.array_equal(state[name], array)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, STATE, POSITION)
    before = path.read_bytes()
    large = {"weights/a": np.zeros(100_000, np.float32)}
    with full_disk(at=10_000), pytest.raises(XciteError, match="cannot write"):
        checkpoint.save(path, large, POSITION)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"], "nothing half-written stays"


def test_damaged_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(XciteError, match="there is no checkpoint"):
        checkpoint.load(path)
    checkpoint.save(path, STATE, POSITION)
    whole = path.read_bytes()
    for cut in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(XciteError, match="damaged"):
            checkpoint.load(path)
    path.write_bytes(whole.replace(b'\\"epoch\\"', b'\\"epoxh\\"'))
    with pytest.raises(XciteError, match="checksum"):
        checkpoint.load(path)


def written(path: Path, changed: dict[str, Any], **more: str) -> Path:
    """A checkpoint with sound checksums and a position of other values."""
    position = json.dumps(asdict(POSITION) | changed)
    write_safetensors(path, STATE, {"format": checkpoint.FORMAT, "position": position, **more})
    return path


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epoxh": 3}, "incomplete"),
        ({"epoch": -1}, "its epoch is -1"),
        ({"epoch": True}, "its epoch is True"),
        ({"step": 1.5}, r"its step is 1\.5"),
        ({"step": 2**60}, "its step is"),
        ({"loss": math.nan}, "its loss is nan"),
        ({"loss": "3"}, "its loss is '3'"),
        ({"seconds": -1}, "its seconds is -1"),
        ({"best": 101}, "its best is 101"),
        ({"best_top5": []}, "its best_top5 is"),
        ({"fingerprint": None}, "its fingerprint is None"),
    ],
)
def test_values_that_cannot_be(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(XciteError, match=message) as caught:
        checkpoint.load(written(tmp_path / "c.safetensors", changed))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"format": "xcite checkpoint 9"}, "not a training checkpoint"),
        ({"position": "[]"}, "incomplete"),
        ({"position": "{"}, "damaged"),
        ({"run": "[]"}, "damaged"),
        ({"run": '{"run": 3}'}, "damaged"),
        ({"run": '{"walk": "x"}'}, "damaged"),
    ],
)
def test_metadata_that_cannot_be(tmp_path: Path, more: dict[str, str], message: str) -> None:
    with pytest.raises(XciteError, match=message):
        checkpoint.load(written(tmp_path / "c.safetensors", {}, **more))


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    state = {**STATE, "ema/a": np.array([1, np.nan], np.float32)}
    checkpoint.save(tmp_path / "c.safetensors", state, POSITION)
    with pytest.raises(XciteError, match="ema/a is not finite"):
        checkpoint.load(tmp_path / "c.safetensors")


def test_a_checkpoint_of_before_has_no_run(tmp_path: Path) -> None:
    assert checkpoint.load(written(tmp_path / "c.safetensors", {})).identity.run == ""


def test_a_damaged_newest_gives_way_to_the_one_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert checkpoint.newest(folder) == (None, {})
    checkpoint.save(folder.numbered(1), STATE, Position(epoch=1))
    for step in (2, 3, 4):
        checkpoint.save(folder.coming, STATE, Position(epoch=1, step=step))
        checkpoint.publish(folder)
    assert not folder.coming.exists()
    for damaged, step in ((folder.checkpoint, 3), (folder.previous, 0)):
        assert damaged.stat().st_nlink == 1, "no two names of the same bytes"
        flipped = bytearray(damaged.read_bytes())
        flipped[-1] ^= 1
        damaged.write_bytes(flipped)
        found, problems = checkpoint.newest(folder)
        assert found is not None
        assert (found.position.epoch, found.position.step) == (1, step)
        assert damaged.name in problems[damaged]
    folder.numbered(1).write_bytes(b"")
    with pytest.raises(XciteError, match=r"no checkpoint of .* can be used"):
        checkpoint.newest(folder)


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2):
        checkpoint.save(folder.coming, STATE, Position(step=step))
        checkpoint.publish(folder)
    checkpoint.save(folder.coming, STATE, Position(step=3))
    folder.checkpoint.replace(folder.previous)
    found, problems = checkpoint.newest(folder)
    assert found is not None
    assert (found.path, found.position.step, problems) == (folder.coming, 3, {})


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for epoch in range(1, 6):
        checkpoint.save(folder.numbered(epoch), STATE, Position(epoch=epoch))
        checkpoint.keep_numbered(folder, keep=2, epoch=99)
    kept = folder.numbered_checkpoints()
    assert [path.stem for path in kept] == ["checkpoint-0004", "checkpoint-0005"]
    assert checkpoint.load(kept[0]).position.epoch == 4
    checkpoint.keep_numbered(folder, keep=0, epoch=99)
    assert folder.numbered_checkpoints() == []


def test_a_used_folder_is_refused(tmp_path: Path) -> None:
    recipe = recipes.load("digits")
    folder, owned = RunFolder.create(tmp_path / "run", recipe)
    owned.release()
    assert recipes.load(str(tmp_path / "run")) == recipe
    with pytest.raises(XciteError, match="already exists"):
        RunFolder.create(tmp_path / "run", recipe)
    (tmp_path / "file").write_text("x")
    with pytest.raises(XciteError, match="already exists"):
        RunFolder.create(tmp_path / "file", recipe)
    with pytest.raises(XciteError, match="cannot make the run folder"):
        RunFolder.create(tmp_path / "file" / "deep" / "run", recipe)
    for absent in (tmp_path / "absent", tmp_path):
        with pytest.raises(XciteError, match="run folder"):
            RunFolder.open(absent)
    assert RunFolder.open(folder.path).path == folder.path


def test_metrics_forget_what_is_done_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in range(1, 6):
        folder.record({"kind": "step", "step": step})
    folder.record({"kind": "epoch", "epoch": 1, "step": 3, "loss": 0.5})
    with folder.metrics.open("a") as file:
        file.write('{"kind": "st')  # a crash in the middle of a line
    folder.forget_after(3, epochs=0)
    folder.record({"kind": "step", "step": 4})
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4], "the epoch is evaluated again"


def test_rows_of_other_types_are_left_out(tmp_path: Path) -> None:
    sound = {"kind": "epoch", "epoch": 1, "step": 3, "loss": 0.5}
    wrong = [3, [], {}, {"kind": 3, "step": 1}, {"kind": "step", "step": "1"}]
    wrong += [{**sound, "loss": value} for value in ("x", None, [1], {}, math.nan, True)]
    folder = RunFolder(tmp_path)
    lines = [json.dumps(row) for row in [*wrong, sound]] + ["[" * 100_000]
    folder.metrics.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    assert folder.rows() == [sound]


def test_an_environment_of_other_types_is_begun_anew(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for text in ("[]", "{}", '{"sessions": 3}', '{"sessions": [3]}', "{", "null"):
        folder.environment.write_text(text)
        folder.write_environment("torch")
        assert len(json.loads(folder.environment.read_text())["sessions"]) == 1


def test_the_log_rotates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "LOG_LIMIT", 100)
    folder = RunFolder(tmp_path)
    for number in range(20):
        folder.write_log(f"line {number}")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["log.1.txt", "log.2.txt", "log.txt"]
    assert "line 19" in folder.log.read_text()
    assert "line 0" not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_a_line_is_appended_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    json_lines.append(path, "a" * 50 + "\n")
    with full_disk(at=60), pytest.raises(XciteError, match="cannot write"):
        json_lines.append(path, "b" * 50 + "\n")
    json_lines.append(path, "c\n")
    assert path.read_text() == "a" * 50 + "\nc\n"


def test_numbers_of_runs(tmp_path: Path) -> None:
    assert next_run_folder(tmp_path / "digits").name == "digits-1"
    for name in ("digits-2", "digits-10", "digits-distilled-30", "digits-x"):
        (tmp_path / name).mkdir()
    assert next_run_folder(tmp_path / "digits").name == "digits-11"
    assert stem("somewhere/my recipe.yaml") == "my recipe"
