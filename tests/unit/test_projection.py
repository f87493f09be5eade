"""`distill.space`: the student learns what the teacher gives, through rows that are dropped."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from xcite import recipe as recipes
from xcite.alignment.trial import moved_weights
from xcite.cli import main
from xcite.engines import engine_package, installed
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.recipe import Recipe
from xcite.recipe_sections import DistillRecipe
from xcite.training import plan
from xcite.training.loop import train
from xcite.training.projection import student_alone, widen, widened
from xcite.variants import RegNetArchitecture, XCiTArchitecture
from xcite.weights import Metadata, open_weights, save_weights

pytestmark = pytest.mark.skipif(not installed(), reason="needs an engine")
PICTURES = 24
SPACES = {
    "features": ("distill.space=features", "distill.loss=cosine"),
    "classes": ("distill.space=teacher-classes", "distill.loss=dml"),
    "hard": ("distill.space=teacher-classes", "distill.loss=hard"),
}
UNLABELLED = ("data.labels=false", "distill.alpha=1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two classes, and a teacher of five others."""
    place = tmp_path_factory.mktemp("projection")
    random = np.random.default_rng(2)
    for number in range(PICTURES):
        folder = place / "pictures" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (18, 18), np.uint8)).save(folder / f"{number}.png")
    architecture = RegNetArchitecture(
        w0=8, wa=8.0, wm=2.0, group_size=8, depth=2, stem_width=8, num_classes=5, in_chans=1
    )
    metadata = Metadata(
        architecture=architecture,
        class_names=list("vwxyz"),
        preprocessing=Preprocessing(size=16, mean=(0.5,), std=(0.3,)),
    )
    weights = moved_weights(architecture, seed=1)
    weights["head.fc.weight"] *= np.float32(300)
    save_weights(place / "teacher.safetensors", weights, metadata)
    (place / "tiny.yaml").write_text(
        f"""
model: {{name: xcit_nano_12_p8, patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}}
data: {{train: {place}/pictures, workers: 0}}
preprocessing: {{size: 16, mean: [0.4], std: [0.2]}}
optim: {{batch: 8, epochs: 2, warmup_epochs: 0, lr: 1.0e-3, lr_per: null, ema: 0.9}}
run: {{precision: float32}}
distill: {{teacher: {place}/teacher.safetensors}}
""",
        encoding="utf-8",
    )
    return place


def recipe_of(place: Path, *settings: str) -> Recipe:
    return recipes.load(str(place / "tiny.yaml"), settings)


def trained(recipe: Recipe, folder: Path, **options: object) -> dict[str, np.ndarray]:
    train(recipe, folder, console=Console(quiet=True), **options)  # type: ignore[arg-type]
    return open_weights(folder / "last.safetensors").tensors


@pytest.mark.parametrize("engine", installed())
@pytest.mark.parametrize("space", SPACES)
def test_the_run_leaves_the_student_alone(
    place: Path, tmp_path: Path, engine: str, space: str
) -> None:
    recipe = recipe_of(
        place, *SPACES[space], f"run.engine={engine}", f"data.validation={place}/pictures"
    )
    prepared = plan.make(recipe)
    outputs = RegNetArchitecture(
        w0=8, wa=8.0, wm=2.0, group_size=8, depth=2, stem_width=8
    ).num_features
    assert prepared.projected == (outputs if space == "features" else 5)
    run = tmp_path / "run"
    weights = trained(recipe, run)
    assert weights["head.weight"].shape == (2, 16)
    plain = trained(
        recipe_of(
            place,
            f"run.engine={engine}",
            "distill.teacher=null",
            f"data.validation={place}/pictures",
        ),
        tmp_path / "plain",
    )
    assert any((weights[name] != plain[name]).any() for name in plain)
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(run)])
    assert not ended.value.code
    names = open_weights(run / "best.safetensors").metadata.class_names
    assert names == ["a", "b"]


@pytest.mark.parametrize("engine", installed())
@pytest.mark.parametrize("space", SPACES)
def test_live_and_cached_teach_alike(place: Path, tmp_path: Path, engine: str, space: str) -> None:
    settings = [*SPACES[space], f"run.engine={engine}", *UNLABELLED, "distill.top=5"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    cache = tmp_path / "cache"
    for more in ([], ["--verify", "8"]):
        with pytest.raises(SystemExit) as ended:
            main(["teach", str(place / "tiny.yaml"), "--out", str(cache), *arguments, *more])
        assert not ended.value.code
    live = trained(recipe_of(place, *settings), tmp_path / "live")
    cached = recipe_of(place, *settings, f"distill.cache={cache}", "distill.teacher=null")
    weights = trained(cached, tmp_path / "cached")
    for name, value in live.items():
        if space == "hard":  # a class is a class
            assert value.tobytes() == weights[name].tobytes(), name
        else:  # float16 keeps three digits of an answer, and two epochs move weights by 5e-3
            assert np.abs(value - weights[name]).max() < 2e-3, name


def test_engines_learn_alike_without_labels(place: Path, tmp_path: Path) -> None:
    if len(installed()) < 2:
        pytest.skip("needs both engines")
    found = {}
    for engine in installed():
        recipe = recipe_of(place, *SPACES["features"], *UNLABELLED, f"run.engine={engine}")
        found[engine] = trained(recipe, tmp_path / engine)
        assert "head.weight" not in found[engine]
        file = open_weights(tmp_path / engine / "last.safetensors")
        assert (file.architecture.num_classes, file.metadata.class_names) == (0, None)
    one, other = found.values()
    for name, value in one.items():
        # Six steps of 1e-3, whose signs AdamW takes from gradients that round differently.
        assert np.abs(value - other[name]).max() < 2e-4, name


@pytest.mark.parametrize("engine", installed())
def test_a_resumed_run_is_the_undisturbed_one(place: Path, tmp_path: Path, engine: str) -> None:
    settings = [*SPACES["features"], f"run.engine={engine}", "run.keep=2"]
    run = tmp_path / "run"
    whole = trained(recipe_of(place, *settings), run)
    first = run / "checkpoint-0001.safetensors"
    again = trained(recipes.load(str(run)), run, resume=True, checkpoint_file=first)
    assert all(value.tobytes() == again[name].tobytes() for name, value in whole.items())


@pytest.mark.parametrize("engine", installed())
def test_pretrained_weights_begin_a_run_with_labels(
    place: Path, tmp_path: Path, engine: str
) -> None:
    settings = [*SPACES["features"], *UNLABELLED, f"run.engine={engine}"]
    before = trained(recipe_of(place, *settings), tmp_path / "before")
    start = [f"init.weights={tmp_path / 'before'}", "init.reset_head=true", "optim.lr=1.0e-9"]
    start += ["optim.min_lr=0"]
    recipe = recipe_of(place, *start, f"run.engine={engine}", "distill.teacher=null")
    after = trained(recipe, tmp_path / "after")
    assert (
        np.abs(after["blocks.0.attn.qkv.weight"] - before["blocks.0.attn.qkv.weight"]).max() < 1e-6
    )


def test_widening_and_the_way_back() -> None:
    small = XCiTArchitecture(patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=3)
    weights = moved_weights(small, seed=4)
    wide = widen(weights, small, 7, seed=0)
    assert wide["head.weight"].shape == (10, 16)
    assert wide["head.bias"].shape == (10,)
    assert widened(small, 7).num_classes == 10
    back = student_alone(wide, small)
    assert back.keys() == weights.keys()
    assert all((back[name] == value).all() for name, value in weights.items())


@pytest.mark.parametrize("engine", installed())
def test_the_cosine_is_that_of_numpy(engine: str) -> None:
    draw = np.random.default_rng(0).standard_normal
    logits, features = draw((4, 9)).astype(np.float32), draw((4, 6)).astype(np.float32)
    targets = np.eye(3, dtype=np.float32)[[0, 2, 1, 1]]
    own, projected = logits[:, :3].astype(np.float64), logits[:, 3:].astype(np.float64)
    length = np.linalg.norm(projected, axis=1) * np.linalg.norm(features, axis=1)
    part = 1 - ((projected * features).sum(1) / length).mean()
    base = -(targets * (own - np.log(np.exp(own).sum(1, keepdims=True)))).sum(1).mean()
    distill = DistillRecipe(loss="cosine", space="features", alpha=0.3)
    package = engine_package(engine)
    tensor = __import__(engine).to_tensor if engine == "paddle" else __import__(engine).from_numpy
    from importlib import import_module

    losses = import_module(f"{package.__name__}.losses")
    value = float(losses.loss(tensor(logits), tensor(targets), tensor(features), distill))
    assert value == pytest.approx(0.7 * base + 0.3 * part, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["distill.loss=cosine"], "belong together"),
        (["distill.loss=hard", "distill.space=features"], "belong together"),
        (["distill.loss=hard", "data.labels=false"], "a teacher alone to learn from"),
        ([*SPACES["hard"], "data.labels=false", "data.holdout=0.2"], "nothing to evaluate against"),
    ],
)
def test_contradictions(place: Path, settings: list[str], words: str) -> None:
    with pytest.raises(XciteError, match=words):
        recipe_of(place, *settings)


def test_all_pictures_below_a_folder_are_taken_but_those_of_its_validation_part(
    place: Path, tmp_path: Path
) -> None:
    for name in ("train/x/deep/1.png", "train/2.png", "val/y/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16)).save(tmp_path / name)
    settings = [*SPACES["hard"], *UNLABELLED, "optim.batch=2"]
    found = plan.make(recipe_of(place, *settings, f"data.train={tmp_path}"))
    assert len(found.train) == 2
    assert found.class_names == ["unlabelled"]
    assert "whose classes are not looked at" in found.found[0]


def test_a_cache_of_another_space_is_refused(place: Path, tmp_path: Path) -> None:
    arguments = [word for setting in SPACES["hard"] for word in ("--set", setting)]
    with pytest.raises(SystemExit) as ended:
        main(["teach", str(place / "tiny.yaml"), "--out", str(tmp_path / "c"), *arguments])
    assert not ended.value.code
    recipe = recipe_of(
        place, "distill.loss=hard", f"distill.cache={tmp_path / 'c'}", "distill.teacher=null"
    )
    with pytest.raises(XciteError, match=r"does not fit this recipe: distill\.space"):
        train(recipe, tmp_path / "run", console=Console(quiet=True))


def test_a_program_shows_no_features(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from xcite.export.export import export
    from xcite.export.options import ExportOptions

    weights = open_weights(place / "teacher.safetensors")
    export(weights, tmp_path / "program", ExportOptions(format="openvino"))
    program = f"distill.teacher={tmp_path}/program/model.xml"
    assert plan.make(recipe_of(place, *SPACES["hard"], program)).projected == 5
    with pytest.raises(XciteError, match=r"teacher .*model\.xml: it is a program, which shows no"):
        plan.make(recipe_of(place, *SPACES["features"], program))
