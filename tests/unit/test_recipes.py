"""Recipes: the shipped ones load, and what is wrong is said before anything runs."""

import os
from importlib import resources
from pathlib import Path
from typing import get_args

import pytest

from xcite import recipe as recipes
from xcite.errors import XciteError
from xcite.recipe_sections import QUESTIONS

PROMISED = (
    "digits",
    "digits-distilled",
    "digits-teacher",
    "finetune",
    "imagenet",
    "imagenet-distilled",
    "imagenet-passl",
    "imagenet-passl-distilled",
)


def test_what_is_shipped() -> None:
    assert set(recipes.shipped()) >= set(PROMISED)


@pytest.mark.parametrize("name", recipes.shipped())
def test_a_recipe_opens_like_a_lab_note(name: str) -> None:
    text = resources.files("xcite").joinpath("recipes", f"{name}.yaml").read_text("utf-8")
    lines = text.splitlines()
    for line, title in zip(lines, ("Source", "Cost", "Accuracy", "Command"), strict=False):
        assert line.startswith(f"# {title}: "), line
    assert not lines[4].startswith("#")
    accuracy, command = lines[2], lines[3]
    assert "%" in accuracy or "not measured here" in accuracy
    assert command.startswith(f"# Command: xcite train {name}")
    recipes.load(name)


@pytest.mark.parametrize("name", recipes.shipped())
def test_a_dumped_recipe_is_the_same_recipe(name: str) -> None:
    recipe = recipes.load(name)
    again = recipes.parse(recipes.dump(recipe), "dumped")
    assert again == recipe
    assert recipes.digest(again) == recipes.digest(recipe)


def test_the_paper() -> None:
    recipe = recipes.load("imagenet")
    assert (recipe.optim.batch, recipe.optim.epochs, recipe.optim.weight_decay) == (1024, 400, 0.05)
    assert recipe.data.repeats == 3
    assert recipe.model.overrides() == {"drop_path": 0.05}
    larger = recipes.load("imagenet", ["model.name=xcit_large_24_p8"])
    assert larger.model.overrides() == {"drop_path": 0.3}


def test_the_original_entry() -> None:
    recipe = recipes.load("imagenet-passl-distilled")
    assert (recipe.optim.batch, recipe.optim.lr, recipe.optim.lr_per) == (128, 5e-4, None)
    assert (recipe.optim.decay_rule, recipe.optim.ema, recipe.optim.clip) == ("passl", None, None)
    assert (recipe.data.repeats, recipe.model.overrides()) == (1, {"drop_path": 0.0})
    assert (recipe.augment.erasing, recipe.preprocessing.crop_ratio) == (0.25, 1.0)
    assert (recipe.distill.loss, recipe.distill.alpha) == ("dml", 0.5)


def test_the_demo_uses_the_real_machinery() -> None:
    recipe = recipes.load("digits")
    assert recipe.run.engine == "paddle"
    assert recipe.augment.randaugment is None
    assert recipe.augment.mixup > 0
    assert recipe.model.drop_path > 0
    assert recipe.optim.warmup_epochs > 0
    assert recipe.optim.ema


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optim.batchsize=3", "unknown key optim.batchsize; did you mean 'batch'?"),
        ("optims.batch=3", "unknown key optims; did you mean 'optim'?"),
        ("optim.batch=many", "optim.batch"),
        ("optim.batch=3.5", "optim.batch"),
        ("optim.batch='3'", "optim.batch"),
        ("optim.lr=.nan", "optim.lr"),
        ("optim.lr=.inf", "optim.lr"),
        ("optim.lr=-1", "optim.lr"),
        ("model.name=xcit_nano_12_p9", "xcit_nano_12_p8"),
        ("model.num_heads=7", "not a multiple"),
        ("model.w0=24", "no setting w0"),
        ("augment.targets=hard", "mixup and cutmix need soft targets"),
        ("augment.scale=[1.0, 0.1]", "augment.scale"),
        ("optim.accumulate=3", "not a multiple"),
        ("optim.accumulate=1024", "at most optim.batch / 2"),
        ("optim.warmup_epochs=500", "warmup_epochs"),
        ("augment.color_jitter=0.4", "color_jitter"),
        ("distill.teacher=x", "distill.loss"),
        ("distill.loss=hard", "distill.teacher"),
        ("init.reset_head=true", "init.weights"),
        ("init.freeze_patch_embed=true", "init.weights"),
        ("run.compile=true", "torch"),
        ("run.operators=quick", "run.operators"),
        ("run={operators: plain, attention: covariance}", "run.operators"),
        ("preprocessing.mean=[0.5]", "std"),
        ("preprocessing.std=[0, 1, 1]", "std"),
        ("preprocessing.size=0", "preprocessing.size"),
        ("data=3", "data"),
        ("data.1=3", "data.1"),
        ("optim.lr", "section.key=value"),
        ("=3", "section.key=value"),
        ("optim.lr.deep=3", "not a section"),
        ("optim.lr=[", "not YAML"),
    ],
)
def test_what_is_refused(setting: str, message: str) -> None:
    with pytest.raises(XciteError) as caught:
        recipes.parse("optim: {lr: 5e-4}", "r.yaml", [setting])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "mapping of sections"),
        ("optim: {lr: 1e-3, lr: 2e-3}", "twice"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("optim: !!python/object/apply:os.system [ls]", "not YAML"),
        ("a: [" * 3000, "not YAML"),
        ("{{a: 1}: 2}", "not YAML"),
        ("#" * 2_000_000, "longer"),
        ("\x00", "not YAML"),
        ("1: 2", "1"),
    ],
)
def test_odd_files(text: str, message: str) -> None:
    with pytest.raises(XciteError) as caught:
        recipes.parse(text, "r.yaml")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_number_as_people_write_it() -> None:
    assert recipes.parse("optim: {lr: 1e-3}", "r.yaml").optim.lr == 1e-3


def test_names_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(XciteError, match="did you mean 'digits'"):
        recipes.load("digit")
    with pytest.raises(XciteError, match="cannot read"):
        recipes.load(str(tmp_path / "absent.yaml"))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(XciteError, match="cannot read"):
        recipes.load(str(binary))


def test_the_last_setting_wins() -> None:
    recipe = recipes.load("digits", ["optim.epochs=3", "optim.epochs=5"])
    assert recipe.optim.epochs == 5


def test_every_distillation_loss_says_what_it_asks_a_teacher() -> None:
    losses = get_args(recipes.DistillRecipe.model_fields["loss"].annotation)
    assert losses == ("none", *QUESTIONS)
    assert recipes.DistillRecipe().question is None
    warm = {loss: recipes.DistillRecipe(loss=loss, tau=3.0) for loss in QUESTIONS}
    assert {loss: section.temperature for loss, section in warm.items()} == {
        "hard": 1.0,
        "soft": 3.0,
        "dml": 1.0,
        "cosine": 1.0,
    }
    assert [loss for loss, q in QUESTIONS.items() if q.answers == "classes"] == ["hard"]


def test_a_recipe_is_a_file(tmp_path):
    os.mkfifo(tmp_path / "fifo.yaml")
    with pytest.raises(XciteError, match="a FIFO, not a file"):
        recipes.load(str(tmp_path / "fifo.yaml"))
    (tmp_path / "device.yaml").symlink_to("/dev/zero")
    with pytest.raises(XciteError, match="a device, not a file"):
        recipes.load(str(tmp_path / "device.yaml"))
    (tmp_path / "long.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(XciteError, match="longer than a recipe"):
        recipes.load(str(tmp_path / "long.yaml"))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("data.train=d/photos #2/train", "d/photos #2/train"),
        ("data.train=2024", "2024"),
        ("data.train=no", "no"),
        ("data.train=1e-3", "1e-3"),
        ("data.train=*shards: [&a]", "*shards: [&a]"),
        ("data.train=[set] v1/train", "[set] v1/train"),
        ("data.train='quoted'", "'quoted'"),
        ("data.train= a = b ", " a = b "),
        ("data.train=a\nb", "a\nb"),
        ("data.train=caf\udce9", "caf\udce9"),
        ("data.root=~", "~"),
        ("init.weights=0123", "0123"),
        ("data.validation=", None),
        ("data.validation=null", None),
        ("distill.teacher_engine=", None),
        ("distill.teacher_model=null", None),
        ("optim.clip=", None),
        ("run.engine= torch ", "torch"),
        ("data.fast=yes", True),
        ("data.workers=1 # one", 1),
        ("optim.betas=[0.9, 0.99]", (0.9, 0.99)),
        ("model.drop_path=paper", "paper"),
        ("model.drop_path=0.25", 0.25),
    ],
)
def test_text_is_text_where_a_key_takes_text(setting: str, value: object) -> None:
    recipe = recipes.parse("data:", "r.yaml", [setting])
    section, _, key = setting.partition("=")[0].partition(".")
    assert getattr(getattr(recipe, section), key) == value
    assert recipes.parse(recipes.dump(recipe), "dumped") == recipe
    assert recipes.digest(recipe)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.train=", "data.train cannot be empty"),
        ("optim.lr=  ", "optim.lr cannot be empty"),
        ("data.on_error=no", "'stop' or 'skip'"),
        ("optim.lr=2001-99-99", "not YAML"),
        ("data..train=x", "section.key=value"),
    ],
)
def test_what_is_refused_names_the_key(setting: str, message: str) -> None:
    with pytest.raises(XciteError) as caught:
        recipes.parse("{}", "r.yaml", [setting])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_that_yaml_makes_a_number_is_to_be_quoted() -> None:
    with pytest.raises(XciteError, match=r"data\.train: .*put it in quotes \(given: 2024\)"):
        recipes.parse("data: {train: 2024}", "r.yaml")


@pytest.mark.parametrize("name", ["tiny.txt", "tiny", "tiny.yaml.bak"])
def test_a_recipe_may_have_any_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("\ufeffoptim: {epochs: 7}\r\n", "utf-8")
    assert recipes.load(str(tmp_path / name)).optim.epochs == 7
