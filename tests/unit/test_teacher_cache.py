"""The cached teacher: the same answers as live, made once, and only for what they were made of."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from safetensors.numpy import load_file

from xcite import recipe as recipes
from xcite.alignment.trial import moved_weights
from xcite.cli import main
from xcite.data.batch import Batch
from xcite.data.pipeline import TrainLoader
from xcite.engines import create_engine, installed
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.recipe import Recipe
from xcite.training import plan
from xcite.training.loop import train
from xcite.training.ownership import Ownership
from xcite.training.teachers import cache_files, computing
from xcite.training.teachers.cached import CachedTeacher, log_probabilities, open_cache
from xcite.training.teachers.checksums import update_checksums
from xcite.training.teachers.computing import compute
from xcite.training.teachers.live import LiveTeacher, live_teacher
from xcite.variants import RegNetArchitecture
from xcite.weights import Metadata, open_weights, save_weights

CLASSES = ["disc", "noise", "stripes"]
PICTURES = 26  # three steps of 8, two pictures left out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures of three classes, a recipe and a teacher with other class order."""
    place = tmp_path_factory.mktemp("distillation")
    random = np.random.default_rng(5)
    for number in range(PICTURES):
        folder = place / "pictures" / CLASSES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (20, 20), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    architecture = RegNetArchitecture(
        w0=8, wa=8.0, wm=2.0, group_size=8, depth=2, stem_width=8, num_classes=3, in_chans=1
    )
    metadata = Metadata(
        architecture=architecture,
        class_names=["stripes", "disc", "noise"],
        preprocessing=Preprocessing(size=16, mean=(0.5,), std=(0.3,)),
    )
    # A steep head around the features' mean, so that answers differ from picture to picture.
    weights = moved_weights(architecture, seed=1)
    engine = create_engine(installed()[0], architecture)
    engine.load_weights(weights)
    features = engine.features(random.standard_normal((32, 1, 16, 16)).astype(np.float32))
    head = weights["head.fc.weight"] * np.float32(3000)
    weights |= {"head.fc.weight": head, "head.fc.bias": -head @ features.mean(0)}
    save_weights(place / "teacher.safetensors", weights, metadata)
    (place / "tiny.yaml").write_text(
        f"""
model: {{name: xcit_nano_12_p8, patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}}
data: {{train: {place}/pictures, validation: null, workers: 0}}
preprocessing: {{size: 16, mean: [0.4], std: [0.2]}}
optim: {{batch: 8, epochs: 2, warmup_epochs: 0, lr: 1.0e-3, lr_per: null}}
distill: {{loss: hard, teacher: {place}/teacher.safetensors}}
""",
        encoding="utf-8",
    )
    return place


def recipe_of(place: Path, *settings: str) -> Recipe:
    return recipes.load(str(place / "tiny.yaml"), settings)


def teacher_of(recipe: Recipe) -> tuple[plan.Plan, LiveTeacher]:
    prepared = plan.make(recipe)
    return prepared, live_teacher(recipe, prepared.class_names)


def cached(place: Path, folder: Path, *settings: str) -> CachedTeacher:
    recipe = recipe_of(place, f"distill.cache={folder}", *settings)
    prepared = plan.make(recipe)
    return open_cache(recipe, prepared.train, prepared.class_names)


@pytest.fixture(scope="module")
def cache(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hard answers of both epochs."""
    folder = tmp_path_factory.mktemp("cache") / "hard"
    recipe = recipe_of(place)
    prepared, teacher = teacher_of(recipe)
    assert compute(recipe, prepared.train, prepared.class_names, teacher, folder) == 2
    return folder


@pytest.mark.parametrize("engine", installed())
def test_training_from_the_cache_is_bit_identical_to_the_live_teacher(
    engine: str, place: Path, tmp_path: Path
) -> None:
    run = [f"run.engine={engine}", "optim.accumulate=2"]
    with pytest.raises(SystemExit) as ended:
        main(
            ["teach", str(place / "tiny.yaml"), "--out", str(tmp_path / "cache")]
            + [argument for setting in run for argument in ("--set", setting)]
        )
    assert not ended.value.code
    files = {}
    for name, more in (("live", []), ("cached", [f"distill.cache={tmp_path / 'cache'}"])):
        train(recipe_of(place, *run, *more), tmp_path / name, console=Console(quiet=True))
        files[name] = open_weights(tmp_path / name / "last.safetensors")
    plain = recipe_of(place, *run, "distill.loss=none", "distill.teacher=null")
    train(plain, tmp_path / "plain", console=Console(quiet=True))
    undistilled = open_weights(tmp_path / "plain" / "last.safetensors").tensors

    live, from_cache = files["live"].tensors, files["cached"].tensors
    for name, value in live.items():
        assert value.tobytes() == from_cache[name].tobytes(), name
    assert any((live[name] != undistilled[name]).any() for name in live)
    # The student alone is saved, and it names its teacher.
    assert not any(name.startswith(("s1", "stem")) for name in live)
    hashes = {name: file.metadata.provenance["teacher"]["sha256"] for name, file in files.items()}
    assert hashes["live"] == hashes["cached"]
    assert len(hashes["live"]) == 64


def test_answers_are_small_and_those_of_the_live_teacher(place: Path, cache: Path) -> None:
    recipe = recipe_of(place)
    prepared, live = teacher_of(recipe)
    table = cached(place, cache)
    given = set()
    loader = TrainLoader(prepared.train, recipe)
    for epoch in (1, 0):
        for batch in loader.epoch(table.data_epoch(epoch)):
            answers = table.answers(batch)
            assert answers.dtype == np.int64
            np.testing.assert_array_equal(answers, live.answers(batch))
            given |= set(answers.tolist())
    loader.close()
    assert len(given) > 1  # else the comparison says nothing
    names = sorted(path.name for path in cache.iterdir())
    assert names == [
        "README.md", "checksums.sha256", "manifest.json", "run.lock",
        "view-00000.safetensors", "view-00001.safetensors",
    ]  # fmt: skip
    view = load_file(cache / names[4])
    assert view["classes"].dtype == np.uint16
    assert len(view["classes"]) == 24
    assert len(view["present"]) == 4  # a bit a picture
    stranger = Batch(batch.pictures, batch.labels, batch.views + 99, epoch=1)
    with pytest.raises(XciteError, match="no answer for picture"):
        table.answers(stranger)


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ("run.seed=1", "run.seed (cache: 0, this run: 1)"),
        ("optim.batch=4", "optim.batch (cache: 8, this run: 4)"),
        ("augment.mixup=0.1", "augment.mixup (cache: 0.8, this run: 0.1)"),
        ("augment.erasing=0.5", "augment.erasing"),
        ("preprocessing.size=20", "preprocessing.size"),
        ("data.repeats=3", "data.repeats"),
        ("distill.loss=soft", "distill.loss (cache: hard, this run: soft)"),
        ("distill.teacher_size=32", "distill.teacher_size (cache: 16, this run: 32)"),
    ],
)
def test_a_cache_of_another_recipe_is_refused_by_name(
    place: Path, cache: Path, setting: str, field: str
) -> None:
    with pytest.raises(XciteError, match="does not fit this recipe") as refused:
        cached(place, cache, setting)
    assert field in str(refused.value)
    if not setting.startswith(("distill.", "preprocessing.")):  # those change other fields too
        assert str(refused.value).count("(cache: ") == 1


def test_another_teacher_or_other_pictures_are_refused(
    place: Path, cache: Path, tmp_path: Path
) -> None:
    weights = open_weights(place / "teacher.safetensors")
    weights.tensors["head.fc.bias"] = weights.tensors["head.fc.bias"] + np.float32(1)
    save_weights(tmp_path / "other.safetensors", weights.tensors, weights.metadata)
    with pytest.raises(XciteError, match=r"distill\.teacher \(sha256 of its weights\)"):
        cached(place, cache, f"distill.teacher={tmp_path / 'other.safetensors'}")
    pictures = tmp_path / "pictures"
    for path in sorted((place / "pictures").rglob("*.png"))[1:]:
        (pictures / path.parent.name).mkdir(parents=True, exist_ok=True)
        (pictures / path.parent.name / path.name).write_bytes(path.read_bytes())
    with pytest.raises(XciteError, match=r"data\.train \(cache"):
        cached(place, cache, f"data.train={pictures}")
    older = shutil.copytree(cache, tmp_path / "older")  # its two processes mixed each their own
    manifest = json.loads((older / "manifest.json").read_text())
    manifest["depends"]["processes"] = 2
    manifest["hash"] = cache_files.digest(manifest["depends"])
    (older / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(XciteError, match=r"processes \(cache: 2, this run: 1\)"):
        cached(place, older)
    # What only the student feels does not matter, and without a teacher the cache speaks for it.
    cached(place, cache, "augment.smoothing=0", "distill.alpha=0.1", "distill.teacher=null")


def test_fewer_views_than_epochs_are_used_in_turn(place: Path, cache: Path) -> None:
    table = cached(place, cache, "distill.views=2", "optim.epochs=5")
    assert [table.data_epoch(epoch) for epoch in range(5)] == [0, 1, 0, 1, 0]
    with pytest.raises(XciteError, match=r"2 of 5 views; .* set distill\.views to 2"):
        cached(place, cache, "optim.epochs=5")


def test_training_sees_the_pixels_of_the_view_it_has_answers_for(
    place: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    answers = CachedTeacher.answers

    def noted(self: CachedTeacher, batch: Batch, *staged: object) -> np.ndarray:
        seen.append(batch.epoch)
        return answers(self, batch)

    monkeypatch.setattr(CachedTeacher, "answers", noted)
    settings = [f"distill.cache={cache}", "distill.views=2", "optim.epochs=3"]
    train(recipe_of(place, *settings), tmp_path / "run", console=Console(quiet=True))
    assert seen == [0, 0, 0, 1, 1, 1, 0, 0, 0]


def test_an_interrupted_computation_goes_on(
    place: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(computing, "PART_PICTURES", 8)
    recipe = recipe_of(place)
    prepared, teacher = teacher_of(recipe)
    asked = 0
    predict = teacher.predict

    def interrupted(images: np.ndarray) -> np.ndarray:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise KeyboardInterrupt
        return predict(images)

    teacher.predict = interrupted
    arguments = (recipe, prepared.train, prepared.class_names, teacher, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        compute(*arguments)
    assert len(list(tmp_path.glob("*.part-*"))) == 2
    with pytest.raises(XciteError, match=r"holds 0 of 2 views; finish it with `xcite teach`"):
        cached(place, tmp_path)
    progress: list[int] = []
    compute(*arguments, after_batch=lambda pictures, total: progress.append(pictures))
    assert asked == 3 + 4  # two epochs of three steps, two of them done before
    assert progress[0] == 24
    assert progress[-1] == 48
    for name in ("view-00000.safetensors", "view-00001.safetensors"):
        found, expected = load_file(tmp_path / name), load_file(cache / name)
        assert list(found) == list(expected)
        for column, values in found.items():
            np.testing.assert_array_equal(values, expected[column])
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in cache.iterdir()}
    other = recipe_of(place, "run.seed=7")
    with pytest.raises(XciteError, match=r"does not fit this recipe: run\.seed"):
        compute(other, prepared.train, prepared.class_names, teacher, tmp_path)


@pytest.mark.parametrize(("loss", "tau"), [("soft", 2.0), ("dml", 1.0)])
def test_soft_answers_come_back_as_logits(
    place: Path, tmp_path: Path, loss: str, tau: float
) -> None:
    settings = [f"distill.loss={loss}", f"distill.tau={tau}", "distill.top=2", "distill.views=1"]
    recipe = recipe_of(place, *settings)
    prepared, live = teacher_of(recipe)
    compute(recipe, prepared.train, prepared.class_names, live, tmp_path)
    table = cached(place, tmp_path, *settings)
    loader = TrainLoader(prepared.train, recipe)
    batch = next(loader.epoch(0))
    loader.close()
    expected, found = (
        np.exp(logits / tau) / np.exp(logits / tau).sum(1, keepdims=True)
        for logits in (live.answers(batch).astype(np.float64), table.answers(batch))
    )
    # top-2 of three classes and the rest: nothing is lost but float16's last bits
    np.testing.assert_allclose(found, expected, atol=6e-4)
    assert table.answers(batch).dtype == np.float32


def test_the_rest_is_spread_evenly() -> None:
    answers = log_probabilities(
        np.array([[4, 0]], np.uint16),
        np.array([[0.5, 0.25]], np.float16),
        np.array([0.25], np.float16),
        6,
    )
    expected = [0.25, 0.0625, 0.0625, 0.0625, 0.5, 0.0625]
    np.testing.assert_allclose(np.exp(answers[0]), expected, rtol=1e-6)
    certain = log_probabilities(
        np.array([[1]], np.uint16), np.ones((1, 1), np.float16), np.zeros(1, np.float16), 3
    )
    assert np.isfinite(certain).all()


def test_one_process_computes_and_sweeps_what_a_dead_one_left(place: Path, tmp_path: Path) -> None:
    recipe = recipe_of(place, "distill.views=1")
    prepared, teacher = teacher_of(recipe)
    arguments = (recipe, prepared.train, prepared.class_names, teacher, tmp_path)
    (tmp_path / ".view-00000.safetensors.abc.part").write_bytes(b"half")
    owned = Ownership.take(tmp_path)
    with pytest.raises(XciteError, match="is in use by process"):
        compute(*arguments)
    owned.release()
    assert compute(*arguments) == 1
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]


def test_answers_that_no_teacher_gives_are_refused(place: Path, cache: Path) -> None:
    hashed = json.loads((cache / "manifest.json").read_text())["hash"]
    columns = {
        "present": np.array([128], np.uint8),
        "top_classes": np.zeros((1, 1), np.uint16),
        "top_probabilities": np.array([[-0.5]], np.float16),
        "rest": np.array([0.5], np.float16),
    }
    for wrong in (-0.5, np.nan, 1.5):
        columns["top_probabilities"][:] = wrong
        cache_files.save(cache / "view-00007.safetensors", columns, hashed, 7)
        with pytest.raises(XciteError, match="is damaged"):
            cache_files.read_view(cache, 7, hashed, 3)
    (cache / "view-00007.safetensors").unlink()


def test_damage_is_noticed(place: Path, cache: Path, tmp_path: Path) -> None:
    for path in cache.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    view = tmp_path / "view-00000.safetensors"
    batch = Batch(
        np.zeros((1, 16, 16, 1), np.uint8), np.zeros(1, np.int64), np.zeros((1, 2), np.int64)
    )
    view.write_bytes(view.read_bytes()[:-3])
    with pytest.raises(XciteError, match="delete it and run `xcite teach`"):
        cached(place, tmp_path).answers(batch)
    view.write_bytes((cache / "view-00001.safetensors").read_bytes())
    with pytest.raises(XciteError, match="belongs to another teacher cache"):
        cached(place, tmp_path).answers(batch)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["depends"]["run.seed"] = 5
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(XciteError, match="is not that of its fields"):
        cached(place, tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(XciteError, match="not of the format"):
        cached(place, tmp_path)
    with pytest.raises(XciteError, match="is not a teacher cache"):
        cached(place, tmp_path / "nowhere")
    recipe = recipe_of(place)
    prepared, teacher = teacher_of(recipe)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(XciteError, match="is not empty and holds no teacher cache"):
        compute(recipe, prepared.train, prepared.class_names, teacher, tmp_path)


@pytest.mark.parametrize("loss", ["hard", "soft"])
def test_a_damaged_picture_has_a_stand_in_in_the_cache_too(
    place: Path, tmp_path: Path, loss: str
) -> None:
    shutil.copytree(place / "pictures", tmp_path / "pictures")
    damaged = tmp_path / "pictures" / "disc" / "03.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(b"nothing".ljust(len(whole)))
    settings = [
        f"data.train={tmp_path / 'pictures'}", "data.on_error=skip", "data.repeats=3",
        f"distill.loss={loss}", "distill.top=3", "optim.epochs=4",
    ]  # fmt: skip
    recipe = recipe_of(place, *settings)
    prepared, live = teacher_of(recipe)
    lost: dict[str, str] = {}
    compute(
        recipe, prepared.train, prepared.class_names, live, tmp_path / "cache", left_out=lost.update
    )
    assert [name[-11:] for name in lost] == ["disc/03.png"]
    table = cached(place, tmp_path / "cache", *settings)
    loader, met = TrainLoader(prepared.train, recipe), 0
    for epoch in range(4):
        keys = []
        for batch in loader.epoch(epoch):
            wanted, shown = batch.keys(3)
            keys += wanted.tolist()
            met += int((wanted != shown).sum())
            answers, expected = table.answers(batch), live.answers(batch)
            if loss == "hard":
                np.testing.assert_array_equal(answers, expected)
            else:  # stored as probabilities in 16 bits
                np.testing.assert_allclose(softmax(answers), softmax(expected), atol=2e-3)
        assert len(keys) == len(set(keys))
    loader.close()
    assert met > 0
    # Once it can be read, the cache's answers belong to another picture.
    damaged.write_bytes(whole)
    loader = TrainLoader(prepared.train, recipe)
    answered = (table.answers(batch) for epoch in range(4) for batch in loader.epoch(epoch))
    with pytest.raises(XciteError, match="stood where picture"):
        list(answered)
    loader.close()


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


@pytest.mark.parametrize("loss", ["hard", "soft"])
def test_answers_are_verified_and_a_wrong_one_is_found(
    place: Path, tmp_path: Path, loss: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["teach", str(place / "tiny.yaml"), "--out", str(tmp_path / "cache")]
    words += ["--set", f"distill.loss={loss}", "--set", "distill.top=2", "--views", "1"]
    for more in ([], ["--verify", "20"]):
        with pytest.raises(SystemExit) as ended:
            main([*words, *more])
        assert not ended.value.code
    said = capsys.readouterr().out
    assert "24 answers computed again are the teacher's" in said  # whole steps

    hashed = cache_files.read_manifest(tmp_path / "cache")["hash"]
    columns = cache_files.read_view(tmp_path / "cache", 0, hashed, 3)
    ids = columns["classes" if loss == "hard" else "top_classes"].reshape(24, -1)
    ids[5] = (ids[5] + 1) % 3
    wrong = cache_files.view_path(tmp_path / "cache", 0)
    cache_files.save(wrong, columns, hashed, 0)
    update_checksums(tmp_path / "cache", wrong)  # the file is whole, the answer is wrong
    with pytest.raises(SystemExit) as ended:
        main([*words, "--verify", "1000"])
    assert ended.value.code == 2
    assert "1 of 24 answers of the teacher cache" in capsys.readouterr().err


def test_the_documented_lines_read_a_view(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "distillation.md").read_text(encoding="utf-8")
    lines = text.partition("```python\n")[2].partition("```")[0]
    names: dict[str, object] = {}
    monkeypatch.chdir(cache.parent)
    exec(lines.replace('"CACHE', f'"{cache.name}'), names)
    view = load_file(cache / "view-00000.safetensors")
    np.testing.assert_array_equal(names["classes"], view["classes"])
    keys = names["keys"]
    assert isinstance(keys, np.ndarray)
    assert len(keys) == len(view["classes"]) == 24
