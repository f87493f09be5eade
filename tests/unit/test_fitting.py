"""Recipes fitted to pictures, and weights that decide the model."""

import math
from pathlib import Path

import numpy as np
import pytest
from noise_runs import make_pictures
from PIL import Image

from xcite import recipe as recipes
from xcite.canonical import initial_weights
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.training import plan
from xcite.training.fitting import names_pictures, recipe_for
from xcite.variants import find
from xcite.weights import Metadata, catalog, save_weights


@pytest.fixture(autouse=True)
def no_weights_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of published weights instead of this machine's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("XCITE_WEIGHTS_DIR", raising=False)
    return tmp_path / "cache" / "xcite" / "weights"


def publish(folder: Path, name: str, **more: object) -> None:
    """Weights as drawn under a published name; ``more`` are metadata."""
    entry = catalog.find(name)
    architecture = find(entry.architecture)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = Metadata(variant=name, architecture=architecture, **more)  # type: ignore[arg-type]
    save_weights(folder / f"{name}.safetensors", initial_weights(architecture, 0), metadata)


@pytest.mark.parametrize("per_class", [1, 2, 3, 10, 40])
@pytest.mark.parametrize("classes", ["ab", "abcde"])
def test_what_is_fitted_can_be_trained(per_class: int, classes: str, tmp_path: Path) -> None:
    make_pictures(tmp_path / "d", per_class, classes)
    recipe, notes = recipe_for(str(tmp_path / "d"))
    prepared = plan.make(recipe)
    steps = len(prepared.train) // recipe.optim.batch
    assert steps >= 1, "never a batch larger than the data"
    assert recipe.optim.warmup_epochs * steps < recipe.optim.epochs * steps / 2
    assert (recipe.data.on_error, recipe.data.holdout) == ("skip", 0.2)
    assert notes[0].startswith("recipe scratch, because no weights are named")
    assert recipes.parse(recipes.dump(recipe), "saved") == recipe


def test_more_pictures_fewer_epochs_larger_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pictures(tmp_path / "d", 10)
    before = None
    for number in (50, 1_000, 10_000, 1_000_000):
        monkeypatch.setattr(
            "xcite.training.fitting.look",
            lambda source, recipe, number=number: __import__(
                "xcite.training.fitting", fromlist=["Look"]
            ).Look(number, 3, 300),
        )
        optim = recipe_for(str(tmp_path / "d"))[0].optim
        assert optim.epochs <= 100
        assert optim.lr == pytest.approx(1e-3 * math.sqrt(optim.batch / 32), rel=0.02)
        if before is not None:
            assert optim.epochs < before.epochs
            assert optim.batch >= before.batch
        before = optim


@pytest.mark.parametrize(
    ("side", "size", "patch"), [(8, 24, 4), (32, 32, 4), (70, 64, 8), (300, 128, 16)]
)
def test_input_and_patch_follow_the_pictures(
    side: int, size: int, patch: int, tmp_path: Path
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(3):
            noise = np.random.default_rng(index).integers(0, 255, (side, side, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / name / f"{index}.png")
    recipe, _ = recipe_for(str(tmp_path))
    assert recipe.preprocessing.size == size
    assert find(recipe.model.name, **recipe.model.overrides()).stride == patch


def test_grey_pictures_have_one_channel(tmp_path: Path) -> None:
    for name, level in (("a", 40), ("b", 200)):
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.new("L", (30, 30), level + index).save(tmp_path / name / f"{index}.jpg")
    recipe, notes = recipe_for(str(tmp_path))
    assert recipe.preprocessing.mean == pytest.approx([121 / 255], abs=0.01)
    assert recipe.augment.flip == 0
    assert "grey" in notes[1]


def test_settings_win_and_the_rest_is_fitted_to_them(tmp_path: Path) -> None:
    make_pictures(tmp_path / "d", 20)
    pictures = str(tmp_path / "d")
    recipe, _ = recipe_for(pictures, ["optim.epochs=3", "optim.batch=4", "data.holdout=0.5"])
    assert (recipe.optim.epochs, recipe.optim.batch, recipe.data.holdout) == (3, 4, 0.5)
    assert recipe.optim.warmup_epochs == pytest.approx(0.3)
    assert recipe.optim.lr == pytest.approx(3.5e-4)
    named, notes = recipe_for(pictures, ["model.name=xcit_tiny_12_p16"])
    assert named.model.overrides() == {"drop_path": 0.05}
    assert "xcit_tiny_12_p16 is trained from scratch" in notes[0]
    regnet, _ = recipe_for(pictures, ["model.name=regnety_160"])
    assert regnet.model.overrides() == {}
    with pytest.raises(XciteError, match=r"data\.train says other"):
        recipe_for(pictures, ["data.train=other"])
    with pytest.raises(XciteError, match=r"optim\.warmup_epochs 9 is longer than optim\.epochs 3"):
        recipe_for(pictures, ["optim.epochs=3", "optim.warmup_epochs=9"])


def test_nothing_readable(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"none")
    with pytest.raises(XciteError, match="none of the pictures looked at can be read"):
        recipe_for(str(tmp_path))


def test_what_names_pictures(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("")
    (tmp_path / "list.txt").write_text("a/1.png 0\n")
    for what in ("digits", "x.yaml", str(tmp_path / "run"), str(tmp_path / "absent")):
        assert not names_pictures(what), what
    for what in (str(tmp_path), str(tmp_path / "list.txt"), "shards/*.tar"):
        assert names_pictures(what), what
    (tmp_path / "tiny.txt").write_text("optim:\n  epochs: 3\n")
    assert not names_pictures(str(tmp_path / "tiny.txt")), "it reads like a recipe"


def test_weights_at_hand_are_taken_the_cheapest_first(
    tmp_path: Path, no_weights_at_hand: Path
) -> None:
    make_pictures(tmp_path / "d", 10)
    publish(no_weights_at_hand, "xcit_tiny_12_p16_224")
    publish(no_weights_at_hand, "xcit_nano_12_p16_224")
    publish(no_weights_at_hand, "xcit_nano_12_p16_224_dist")
    recipe, notes = recipe_for(str(tmp_path / "d"))
    assert recipe.init.weights == "xcit_nano_12_p16_224_dist"
    assert "also here: xcit_nano_12_p16_224, xcit_tiny_12_p16_224" in notes[0]
    tiny, _ = recipe_for(str(tmp_path / "d"), ["model.name=xcit_tiny_12_p16"])
    assert tiny.init.weights == "xcit_tiny_12_p16_224"
    none, notes = recipe_for(str(tmp_path / "d"), ["model.name=xcit_nano_12_p8"])
    assert none.init.weights is None
    assert "no published ones of xcit_nano_12_p8 lie here" in notes[0]
    off, notes = recipe_for(str(tmp_path / "d"), ["init.weights=null"])
    assert off.init.weights is None
    assert "init.weights is null" in notes[0]


def test_named_weights_decide_model_and_pixels(tmp_path: Path, no_weights_at_hand: Path) -> None:
    pictures = make_pictures(tmp_path / "d", 4)
    contract = Preprocessing(size=48, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    publish(no_weights_at_hand, "xcit_nano_12_p16_224_dist", preprocessing=contract)
    where = [f"data.train={pictures}", f"data.validation={pictures}", "optim.batch=4"]
    weights = "init.weights=xcit_nano_12_p16_224_dist"
    prepared = plan.make(recipes.load("finetune", [*where, weights]))
    assert prepared.recipe.model.name == "xcit_nano_12_p16"
    assert prepared.recipe.preprocessing == contract
    assert prepared.recipe.init.reset_head is True
    assert any("decides the model: xcit_nano_12_p16" in note for note in prepared.notes)
    # what a recipe says itself stays
    own = plan.make(recipes.load("finetune", [*where, weights, "preprocessing.size=32"]))
    assert own.recipe.preprocessing == contract.model_copy(update={"size": 32})
    with pytest.raises(XciteError, match=r"xcit_nano_12_p16.* (shape|fit|missing|has)"):
        plan.make(recipes.load("finetune", [*where, weights, "model.name=xcit_nano_12_p8"]))
    # and what a run has saved leaves nothing open
    saved = recipes.parse(recipes.dump(prepared.recipe), "saved")
    again = plan.make(saved, initialise=False)
    assert again.recipe == prepared.recipe
    assert not [note for note in again.notes if "decides" in note]


def test_the_head_stays_where_it_knows_the_classes(tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "d", 4)
    architecture = find("xcit_nano_12_p16", embed_dim=16, depth=1, num_heads=2, num_classes=3)
    weights = initial_weights(architecture, 0)
    settings = [f"data.train={pictures}", f"data.validation={pictures}", "optim.batch=4"]

    def start(names: list[str] | None, *more: str) -> plan.Plan:
        metadata = Metadata(
            architecture=architecture, class_names=names, preprocessing=Preprocessing(size=32)
        )
        save_weights(tmp_path / "w.safetensors", weights, metadata)
        init = f"init.weights={tmp_path / 'w.safetensors'}"
        return plan.make(recipes.load("finetune", [*settings, init, *more]))

    kept = start(["a", "b", "c"])
    assert kept.recipe.init.reset_head is False
    assert kept.recipe.model.overrides()["embed_dim"] == 16
    assert any("is kept: it knows these classes" in note for note in kept.notes)
    for names in (["c", "b", "a"], None, ["x", "y", "z"]):
        assert start(names).recipe.init.reset_head is True
    with pytest.raises(XciteError, match=r"set init\.reset_head=true"):
        start(["x", "y", "z"], "init.reset_head=false")
    numbers = tmp_path / "list.txt"
    numbers.write_text("".join(f"d/{name}/1.png {k}\n" for k, name in enumerate("abc")))
    listed = [f"data.train={numbers}", "data.validation=null", "optim.batch=3"]
    taken = start(["x", "y", "z"], *listed, "init.reset_head=false")
    assert any("are taken to be the classes of" in note for note in taken.notes)
    assert start(["x", "y", "z"], *listed).recipe.init.reset_head is True


def test_a_stem_that_is_not_there_cannot_be_frozen(
    tmp_path: Path, no_weights_at_hand: Path
) -> None:
    pictures = make_pictures(tmp_path / "d", 4)
    architecture = find("regnety_160", w0=8, wa=8.0, wm=2.0, group_size=8, depth=2, stem_width=8)
    metadata = Metadata(architecture=architecture, preprocessing=Preprocessing(size=32))
    save_weights(tmp_path / "r.safetensors", initial_weights(architecture, 0), metadata)
    settings = [
        f"data.train={pictures}",
        f"data.validation={pictures}",
        "optim.batch=4",
        f"init.weights={tmp_path / 'r.safetensors'}",
    ]
    prepared = plan.make(recipes.load("finetune", settings))
    assert any("has no drop_path: left out" in note for note in prepared.notes)
    with pytest.raises(XciteError, match="a RegNetY has no patch_embed"):
        plan.make(recipes.load("finetune", [*settings, "init.freeze_patch_embed=true"]))


@pytest.mark.parametrize("model", ["xcit_nano_12_p16", "regnety_160"])
def test_one_picture_of_one_token_is_refused(model: str, tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "d", 3)
    settings = [f"data.train={pictures}", f"model.name={model}", "optim.batch=1"]
    for size in (8, 16):
        with pytest.raises(XciteError, match=f"optim.batch 1 at {size} px leaves BatchNorm"):
            plan.make(recipes.parse("", "own", [*settings, f"preprocessing.size={size}"]))
    plan.make(recipes.parse("", "own", [*settings, "preprocessing.size=64"]))


def test_without_validation_there_is_none(tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path, 3, classes="0123456789")
    settings = [f"data.train={pictures}", "optim.batch=4"]
    assert plan.make(recipes.parse("", "own", settings)).validation is None
