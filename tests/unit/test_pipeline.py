"""Batches: the same from any number of workers and any start, counted, shared and cleaned up."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from xcite.data import transforms
from xcite.data.batch import Batch, Mixing, share, split
from xcite.data.pipeline import EvaluationLoader, TrainLoader
from xcite.data.skipping import Skipping
from xcite.data.sources import open_source
from xcite.data.transforms import evaluation_pixels
from xcite.engines.pixels import model_input
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.recipe import parse


def recipe(**sections):
    values = {
        "data": {"workers": 0},
        "optim": {"batch": 16, "epochs": 3, "warmup_epochs": 0, "lr_per": None},
        "preprocessing": {"size": 24},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    import yaml

    return parse(yaml.safe_dump(values), "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(40):
        path = root / "abcd"[number % 4] / f"{number:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (40, 50 + number, 3), np.uint8)
        Image.fromarray(pixels).save(path, quality=80)
    return root


def same(first, second):
    for one, other in zip(first, second, strict=True):
        for name in ("pictures", "labels", "views", "targets"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert (one.mixing is None) == (other.mixing is None)
        if one.mixing is not None:
            np.testing.assert_array_equal(one.mixing.share, other.mixing.share)
            np.testing.assert_array_equal(one.mixing.boxes, other.mixing.boxes)
        assert [box[:3] for box in one.erased] == [box[:3] for box in other.erased]
        for mine, theirs in zip(one.erased, other.erased, strict=True):
            np.testing.assert_array_equal(mine[3], theirs[3])
        assert one.epoch == other.epoch


def test_two_one_and_no_workers_give_identical_batches(folder):
    source = open_source(folder)
    results = []
    for workers in (0, 1, 2):
        loader = TrainLoader(source, recipe(data={"workers": workers, "repeats": 3}))
        batches = [batch for epoch in (0, 1) for batch in loader.epoch(epoch)]
        loader.close()
        results.append(batches)
    assert len(results[0]) == 4
    same(results[0], results[1])
    same(results[0], results[2])
    assert multiprocessing.active_children() == []


def test_an_epoch_goes_on_from_any_step(folder):
    source = open_source(folder)
    whole = TrainLoader(source, recipe(optim={"batch": 5}))
    batches = list(whole.epoch(2))
    assert whole.steps_per_epoch == len(batches) == 8
    resumed = TrainLoader(source, recipe(optim={"batch": 5}))
    same(batches[3:], list(resumed.epoch(2, start_step=3)))


def test_epochs_differ_and_cover_every_picture(folder):
    loader = TrainLoader(open_source(folder), recipe(optim={"batch": 8}))
    epochs = [list(loader.epoch(epoch)) for epoch in (0, 1)]
    orders = [np.concatenate([batch.views[:, 0] for batch in epoch]) for epoch in epochs]
    assert [sorted(order) for order in orders] == [list(range(40))] * 2
    assert (orders[0] != orders[1]).any()
    assert [batch.epoch for batch in epochs[1]] == [1] * 5


def test_what_a_batch_holds(folder):
    settings = recipe(augment={"erasing": 1.0})
    batch = next(iter(TrainLoader(open_source(folder), settings).epoch(0)))
    assert batch.pictures.shape == (16, 24, 24, 3)
    assert batch.pictures.dtype == np.uint8
    assert batch.targets.shape == (16, 4)
    assert batch.targets.dtype == np.float32
    np.testing.assert_allclose(batch.targets.sum(1), 1, atol=1e-6)  # sums of float32
    assert len(batch.erased) == 16
    for position, top, left, noise in batch.erased:
        assert 0 <= position < 16
        assert noise.dtype == np.float32
        assert noise.shape[0] == 3
        assert top + noise.shape[1] <= 24
        assert left + noise.shape[2] <= 24
    noises = np.concatenate([noise.ravel() for *_, noise in batch.erased])
    assert abs(noises.mean()) < 0.05  # about 4,000 standard normal numbers
    assert abs(noises.std() - 1) < 0.05


def test_repeats_stand_together_with_their_own_augmentation(folder):
    settings = recipe(data={"repeats": 3}, optim={"batch": 12})
    batch = next(iter(TrainLoader(open_source(folder), settings).epoch(0)))
    triples = batch.views.reshape(4, 3, 2)
    assert (triples[:, :, 0] == triples[:, :1, 0]).all()
    assert triples[0, :, 1].tolist() == [0, 1, 2]
    assert (batch.pictures[0] != batch.pictures[1]).any()


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("mode", "batch", "parts"), [("batch", 13, 1), ("pair", 18, 2), ("elem", 18, 3)]
)
def test_processes_share_a_step(folder, mode, batch, parts, count):
    """Any number of processes, also one that does not divide the batch, shares the same batch."""
    source = open_source(folder)
    optim = {"batch": batch, "accumulate": parts}
    settings = recipe(optim=optim, augment={"mix_mode": mode}, data={"repeats": 3})
    alone = list(TrainLoader(source, settings).epoch(0))
    loaders = [TrainLoader(source, settings, rank=r, world_size=count) for r in range(count)]
    for whole, *shares in zip(alone, *(loader.epoch(0) for loader in loaders), strict=True):
        assert [each.whole for each in shares] == [batch] * count
        cut = [split(each, parts) for each in shares]
        # every process's share of a part is a part of that part
        for mine, expected in zip(zip(*cut, strict=True), split(whole, parts), strict=True):
            found = np.concatenate([part.views for part in mine]).tolist()
            assert sorted(found) == sorted(expected.views.tolist())
        cells = split(replace(whole, pairs=()), parts * count)
        for part, expected in zip(itertools.chain(*zip(*cut, strict=True)), cells, strict=True):
            for name in ("pictures", "labels", "views", "wanted", "targets"):
                np.testing.assert_array_equal(getattr(part, name), getattr(expected, name))
            np.testing.assert_array_equal(part.mixing.share, expected.mixing.share)
            np.testing.assert_array_equal(part.mixing.boxes, expected.mixing.boxes)
            for found, wanted in zip(part.erased, expected.erased, strict=True):
                assert found[:3] == wanted[:3]
                np.testing.assert_array_equal(found[3], wanted[3])


def test_a_batch_too_small_for_its_processes_is_refused(folder):
    with pytest.raises(XciteError, match=r"5 parts .* for the 8 pictures .* to 10 or more"):
        TrainLoader(open_source(folder), recipe(optim={"batch": 8}), world_size=5)


def test_a_batch_larger_than_the_set_is_refused(folder):
    with pytest.raises(XciteError, match=r"optim\.batch 41 is larger than the data set"):
        TrainLoader(open_source(folder), recipe(optim={"batch": 41}))
    assert TrainLoader(open_source(folder), recipe(optim={"batch": 40})).steps_per_epoch == 1


def test_the_fast_way_is_the_same_from_any_number_of_workers_and_shows_the_same(folder):
    source, size = open_source(str(folder)), {"size": 16}
    plain = {"randaugment": None, "erasing": 0.0, "scale": [0.9, 1.0]}

    def first_batch(**data):
        loader = TrainLoader(source, recipe(data=data, preprocessing=size, augment=plain))
        return next(loader.epoch(0))

    exact = first_batch()
    fast = [first_batch(fast=True, workers=workers) for workers in (0, 2)]
    same(*[[batch] for batch in fast])
    np.testing.assert_array_equal(fast[0].views, exact.views)
    difference = fast[0].pictures.astype(int) - exact.pictures
    # noise of 0..255 decoded at half the size: other pixels, of the same place and brightness
    assert 0 < np.abs(difference).mean() < 25
    assert abs(difference.mean()) < 1


def test_the_fast_way_without_its_library_is_refused_at_once(folder, monkeypatch):
    transforms._fast_resizer.cache_clear()
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    with pytest.raises(XciteError, match=r"pip install 'xcite\[fast\]'"):
        TrainLoader(open_source(str(folder)), recipe(data={"fast": True, "workers": 2}))


@pytest.mark.parametrize("crop", ["padded", "none"])
def test_other_crops(crop):
    settings = recipe(
        augment={
            "crop": crop,
            "randaugment": None,
            "color_jitter": 0.4 if crop == "padded" else 0.0,
            "flip": 0.0,
            "mixup": 0.0,
            "cutmix": 0.0,
            "erasing": 0.0,
        },
        preprocessing={"size": 16, "mean": [0.5], "std": [0.25]},
    )
    source = open_source("digits", channels=1)
    batch = next(iter(TrainLoader(source, settings).epoch(0)))
    assert batch.pictures.shape == (16, 16, 16, 1)
    assert batch.mixing is None
    assert batch.erased == []
    plain = np.stack(
        [evaluation_pixels(source.read(i), settings.preprocessing) for i in batch.views[:, 0]]
    )
    assert (batch.pictures == plain).all() == (crop == "none")


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_counts_every_picture_once(folder, workers):
    source, preprocessing = open_source(folder), Preprocessing(size=24)
    loader = EvaluationLoader(source, preprocessing, batch=9, workers=workers)
    for _ in range(2):
        batches = list(loader)
        assert [len(batch) for batch in batches] == [9, 9, 9, 9, 4]
        seen = np.concatenate([batch.views[:, 0] for batch in batches])
        assert seen.tolist() == list(range(40))
    labels = np.concatenate([batch.labels for batch in batches])
    np.testing.assert_array_equal(labels, source.labels)
    assert batches[0].targets is None
    assert multiprocessing.active_children() == []


def test_evaluation_over_three_processes_counts_every_picture_once(folder):
    source, preprocessing = open_source(folder), Preprocessing(size=24)
    seen = [
        int(index)
        for rank in range(3)
        for batch in EvaluationLoader(
            source, preprocessing, batch=9, workers=0, rank=rank, world_size=3
        )
        for index in batch.views[:, 0]
    ]
    assert sorted(seen) == list(range(40))


@pytest.fixture
def damaged(folder, tmp_path):
    import shutil

    root = tmp_path / "damaged"
    shutil.copytree(folder, root)
    (root / "b" / "01.jpg").write_bytes(b"not a picture")
    whole = (root / "c" / "06.jpg").read_bytes()
    (root / "c" / "06.jpg").write_bytes(whole[: len(whole) // 2])
    return root


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_pictures_stop_by_name(damaged, workers):
    source = open_source(damaged)
    with pytest.raises(XciteError, match=r"(01|06)\.jpg.*on_error: skip"):
        list(TrainLoader(source, recipe(data={"workers": workers})).epoch(0))
    with pytest.raises(XciteError, match=r"01\.jpg.*on_error: skip"):
        list(EvaluationLoader(source, Preprocessing(size=24), batch=9, workers=workers))
    assert multiprocessing.active_children() == []


def test_damaged_pictures_are_skipped_and_listed(damaged):
    source = open_source(damaged)
    results = []
    for workers in (0, 2):
        settings = recipe(data={"workers": workers, "on_error": "skip"}, optim={"batch": 8})
        loader = TrainLoader(source, settings)
        results.append(list(loader.epoch(0)))
        loader.close()
        assert sorted(name[-8:] for name in loader.skipped) == ["b/01.jpg", "c/06.jpg"]
    same(*results)
    indices = np.concatenate([batch.views[:, 0] for batch in results[0]])
    assert len(indices) == 40
    assert len(set(indices)) == 38
    for batch in results[0]:
        np.testing.assert_array_equal(batch.labels, source.labels[batch.views[:, 0]])
    loader = EvaluationLoader(source, Preprocessing(size=24), batch=9, workers=0, on_error="skip")
    assert sum(len(batch) for batch in loader) == 38
    assert len(loader.skipped) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_more_damage_than_is_allowed_stops_with_number_and_names(damaged, workers):
    source = open_source(damaged)
    data = {"workers": workers, "on_error": "skip", "skip_limit": 1}
    loader = TrainLoader(source, recipe(data=data, optim={"batch": 8}))
    wanted = (
        r"2 of 40 pictures cannot be read, more than the 1 that may be skipped "
        r"\(.*0\d\.jpg: .*0\d\.jpg: .*raise data\.skip_limit"
    )
    with pytest.raises(XciteError, match=wanted):
        list(loader.epoch(0))
    evaluation = EvaluationLoader(
        source, Preprocessing(size=24), batch=4, workers=workers, on_error="skip", skip_limit=1
    )
    with pytest.raises(XciteError, match=wanted):
        list(evaluation)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("pictures", "limit", "most"),
    [(5, None, 10), (1_000, None, 10), (2_000, None, 20), (10**6, None, 100), (10**6, 0, 0),
     (50, 7_000, 7_000)],
)  # fmt: skip
def test_how_many_pictures_may_be_skipped(pictures, limit, most):
    skipping = Skipping("skip", limit, pictures)
    assert skipping.most == most
    lost = {str(number): "gone" for number in range(most)}
    skipping.check(lost)
    with pytest.raises(XciteError, match=f"{most + 1} of {pictures} pictures"):
        skipping.leave_out(XciteError("one: gone"), "one", lost)
    assert lost["one"] == "gone"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("crop", ["random_resized", "padded", "none"])
def test_oblong_inputs(folder, workers, crop):
    settings = {
        "preprocessing": {"size": [16, 24]},
        "data": {"workers": workers},
        "augment": {"crop": crop, "mixup": 0},
        "optim": {"batch": 8},
    }
    loader = TrainLoader(open_source(folder), recipe(**settings))
    batches = list(loader.epoch(0))
    loader.close()
    assert {batch.pictures.shape for batch in batches} == {(8, 16, 24, 3)}
    boxes = np.concatenate([batch.mixing.boxes for batch in batches if batch.mixing])
    assert boxes[:, 1].max() <= 16 < boxes[:, 3].max() <= 24
    images = model_input(batches[0], Preprocessing(size=(16, 24)))
    assert images.shape == (8, 3, 16, 24)


def test_an_oblong_shows_as_much_as_it_can():
    wide = np.zeros((60, 180, 3), np.uint8)
    wide[:, :90] = 255
    seen = evaluation_pixels(wide, Preprocessing(size=(16, 32)))
    assert seen.shape == (16, 32, 3)
    assert (seen[:, :14] == 255).all()
    assert (seen[:, 18:] == 0).all()
    tall = evaluation_pixels(wide.transpose(1, 0, 2), Preprocessing(size=(16, 32), crop_ratio=0.5))
    assert (tall[:6] == 255).all()
    assert (tall[10:] == 0).all()


def test_nothing_that_can_be_decoded(tmp_path):
    for number in range(3):
        path = tmp_path / "a" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"nothing")
    settings = recipe(data={"on_error": "skip"}, optim={"batch": 2})
    with pytest.raises(XciteError, match="none of the 3 pictures"):
        list(TrainLoader(open_source(tmp_path), settings).epoch(0))


def test_leaving_an_epoch_ends_the_workers(folder):
    loader = TrainLoader(open_source(folder), recipe(data={"workers": 2}, optim={"batch": 4}))
    for batch in loader.epoch(0):
        assert len(batch) == 4
        break
    assert multiprocessing.active_children() == []


def test_an_exception_ends_the_workers(folder):
    loader = TrainLoader(open_source(folder), recipe(data={"workers": 2}, optim={"batch": 4}))

    def fail():
        for _ in loader.epoch(1):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert multiprocessing.active_children() == []


SCRIPT = """
    import signal, sys, time, multiprocessing
    from xcite.data.pipeline import TrainLoader
    from xcite.data.sources import open_source
    from xcite.recipe import parse

    if __name__ == "__main__":
        # a test run that was started in the background hands SIGINT on as ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
        settings = "{data: {workers: 2}, optim: {batch: 4, lr_per: null}}"
        loader = TrainLoader(open_source(sys.argv[1]), parse(settings, "test"))
        try:
            for epoch in range(400):
                for batch in loader.epoch(epoch):
                    children = multiprocessing.active_children()
                    print(*[child.pid for child in children], flush=True)
                    time.sleep(0.05)
        except KeyboardInterrupt:
            loader.close()
            print("stopped", flush=True)
"""


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_an_interrupted_run(folder, tmp_path, blow):
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SCRIPT))
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(5):  # so both have made a batch
        pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    os.killpg(process.pid, blow) if blow == signal.SIGINT else process.kill()
    output, errors = process.communicate(timeout=240)
    if blow == signal.SIGINT:
        assert output.endswith("stopped\n")
        assert errors == ""  # no remark about JAX, no traceback of a worker, nothing leaked
        assert process.returncode == 0
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_accumulation_keeps_partners_together():
    length = 11
    batch = Batch(
        pictures=np.arange(length, dtype=np.uint8).reshape(length, 1, 1, 1),
        labels=np.arange(length),
        views=np.stack([np.arange(length)] * 2, axis=1),
        targets=np.eye(length, dtype=np.float32),
        erased=[(i, 0, 0, np.full((1, 1, 1), i, np.float32)) for i in (0, 5, 10)],
        mixing=Mixing(np.arange(length, dtype=np.float32), np.zeros((length, 4), np.int32)),
    )
    parts = split(batch, 3)
    assert sorted(np.concatenate([part.labels for part in parts])) == list(range(length))
    for part in parts:
        np.testing.assert_array_equal(part.labels + part.labels[::-1], length - 1)
        np.testing.assert_array_equal(part.mixing.share, part.labels)
        np.testing.assert_array_equal(part.targets.argmax(1), part.labels)
        for position, _, _, noise in part.erased:
            assert noise.item() == part.labels[position]
    assert sum(len(part.erased) for part in parts) == 3
    assert split(batch, 1) == [batch]


@pytest.mark.parametrize(("length", "parts"), [(8, 2), (8, 4), (12, 3), (1, 1), (3, 2)])
def test_parts_of_a_batch(length, parts):
    places, pairs = share(length, parts, 0, 1)
    assert places.tolist() == list(range(length))
    assert len(pairs) == parts
    assert sum(pairs) == (length + 1) // 2
    assert max(pairs) - min(pairs) <= 1


@given(st.integers(2, 70), st.integers(1, 5), st.integers(1, 5))
def test_shares_of_a_batch(length, parts, processes):
    assume(parts * processes <= (length + 1) // 2)
    shares = [share(length, parts, process, processes)[0] for process in range(processes)]
    assert sorted(np.concatenate(shares)) == list(range(length))
    for places in shares:
        np.testing.assert_array_equal(places + places[::-1], length - 1)


def test_too_many_parts():
    with pytest.raises(XciteError, match=r"5 parts .* too many for the 8 .* to 10 or more"):
        share(8, 5, 0, 1)
