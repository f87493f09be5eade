"""A recipe for pictures that come without one.

`finetune` where there are weights to start from, else `scratch`, with batch, epochs, rate, warm-up
and average fitted to how many pictures there are, and patch and input to how large they are.
"""

import glob
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xcite import recipe as recipes
from xcite.cost import multiply_adds
from xcite.data.decoding import Opened, decode
from xcite.data.sources import Source, evenly, has_split
from xcite.engines import installed
from xcite.errors import XciteError
from xcite.language import tr
from xcite.machine import usable_cores
from xcite.preprocessing import in_pixels, sides
from xcite.recipe import Recipe
from xcite.regular_files import read_regular
from xcite.training.run_data import open_training
from xcite.variants import XCiTArchitecture, architecture_name, find
from xcite.weights import catalog

HOLDOUT = 0.2
DROP_PATH = 0.05
MANY = 4_000  # pictures, to decode which people wait
LOOKED_AT = 32  # pictures whose size and colours decide


@dataclass(frozen=True)
class _Pace:
    """How long and how fast training goes, for 1,000 pictures and a batch of 32.

    Epochs fall with the root of the number of pictures: few pictures must be seen often, many need
    fewer passes but more steps. The batch leaves 32 steps an epoch where that is possible, for a
    small network learns from steps, not from pictures. The rate follows the root of the batch, as
    is usual with Adam.
    """

    epochs: float
    most_epochs: int
    largest_batch: int
    rate: float


_PACES = {"scratch": _Pace(40, 100, 128, 1e-3), "finetune": _Pace(20, 40, 64, 1.4e-4)}


@dataclass(frozen=True)
class Look:
    """What some of the pictures look like.

    Attributes:
        pictures: for training, held-out ones not counted.
        side: median of the shorter sides, in pixels.
        mean, std: of the greys, 0..1, where all pictures are grey; else None.
    """

    pictures: int
    classes: int
    side: int
    mean: float | None = None
    std: float | None = None


def names_pictures(what: str) -> bool:
    """Whether ``what`` names something on the disk that is no recipe."""
    path = Path(what).expanduser()
    if _is_recipe(what) or not (path.exists() or glob.has_magic(what)):
        return False
    return not (path.is_file() and _reads_like_a_recipe(path))


def recipe_for(pictures: str, settings: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """The recipe for a folder, archive or list of pictures, and why it is that one.

    Args:
        settings: what the user sets, ``a.b=c``; the rest is fitted to it, too.

    Raises:
        XciteError: pictures that cannot be listed or read, or settings that contradict each other.
    """
    asked = {setting.partition("=")[0].strip() for setting in settings}
    found: dict[str, Any] = {"data.train": pictures, "data.on_error": "skip"}
    if installed():
        found["run.engine"] = installed()[0]
    loose = {"optim.warmup_epochs": 0}  # a longer one would contradict fewer epochs
    if "model.name" in asked:  # then the widths of the small model are not meant
        widths = ("embed_dim", "depth", "num_heads", "drop_path")
        found |= dict.fromkeys(f"model.{field}" for field in widths)
    draft = recipes.load("scratch", settings, found | loose)
    data = draft.data
    parted = has_split(
        pictures,
        "validation",
        root=data.root,
        outside_root=data.outside_root,
        columns=data.columns,
    )
    found["data.validation"] = pictures if parted else None
    found["data.holdout"] = None if parted else HOLDOUT
    if "model.name" in asked and hasattr(find(draft.model.name), "drop_path"):
        found["model.drop_path"] = DROP_PATH
    others = []
    base = "finetune" if draft.init.weights else "scratch"
    if "init.weights" not in asked:
        model = draft.model.name if "model.name" in asked else None
        if here := _weights_at_hand(model):
            base, found["init.weights"], others = "finetune", here[0], here[1:]
    draft = recipes.load(base, settings, found | loose)
    if draft.data.train != pictures:
        raise XciteError(
            f"the pictures are {pictures}, data.train says {draft.data.train}; give one of them"
        )
    seen = look(open_training(draft), draft)
    if base == "scratch":
        found |= _fit_model(seen, draft, asked)
        draft = recipes.load(base, settings, found | loose)
    found |= _fit_training(seen, draft, asked, _PACES[base])
    recipe = recipes.load(base, settings, found)
    notes = [_why(recipe, asked, others), _fitted(recipe, seen)]
    if recipe.data.validation is None and recipe.data.holdout and seen.pictures > MANY:
        notes.append(
            tr(
                "first of all near-duplicates are looked for, to stay together in the split: about "
                "as long as decoding every picture once"
            )
        )
    return recipe, notes


def _is_recipe(name: str) -> bool:
    """A shipped recipe, a .yaml file or a run folder."""
    path = Path(name)
    shipped = name in recipes.shipped()
    return shipped or path.suffix in (".yaml", ".yml") or (path / "recipe.yaml").is_file()


def _reads_like_a_recipe(path: Path) -> bool:
    """Whether a line near the beginning of a file, whatever its name, opens a recipe's section."""
    try:
        text = read_regular(path, size=1 << 16)
    except (OSError, XciteError):
        return False
    sections = "|".join(Recipe.model_fields).encode()
    return re.search(rb"^(?:" + sections + rb"):", text, re.MULTILINE) is not None


def look(source: Source, recipe: Recipe) -> Look:
    """Look at `LOOKED_AT` pictures at even distances.

    Raises:
        XciteError: none of them can be read; says why the first cannot.
    """
    sides, greys, coloured = [], [], False
    channels = recipe.preprocessing.channels
    problem = None
    for index in evenly(len(source), LOOKED_AT):
        name = source.name(index)
        try:
            opened = Opened(source.read(index), max_pixels=recipe.data.max_pixels, origin=name)
            pixels = decode(
                source.read(index),
                channels=channels,
                max_pixels=recipe.data.max_pixels,
                origin=name,
                reduce_to=32,
            )
        except XciteError as error:
            problem = problem or error
            continue
        sides.append(min(opened.size))
        # A grey picture stored as colour JPEG is grey but for rounding.
        coloured |= channels != 3 or bool((pixels.max(axis=2) - pixels.min(axis=2)).max() > 4)
        greys.append(pixels.mean(axis=2).ravel() / 255)
    if not sides:
        raise XciteError(f"none of the pictures looked at can be read; the first: {problem}")
    count = len(source)
    if recipe.data.validation is None and recipe.data.holdout:
        count -= round(recipe.data.holdout * count)
    classes, side = len(source.class_names), int(np.median(sides))
    if coloured:
        return Look(count, classes, side)
    grey = np.concatenate(greys)
    return Look(count, classes, side, float(grey.mean()), max(float(grey.std()), 0.05))


def _fit_model(seen: Look, draft: Recipe, asked: set[str]) -> dict[str, Any]:
    """Input and patch: 36 to 144 tokens, whatever the size of the pictures."""
    found: dict[str, Any] = {}
    if "preprocessing.size" not in asked:
        found["preprocessing.size"] = min(128, max(24, seen.side // 8 * 8))
    size = found.get("preprocessing.size", draft.preprocessing.size)
    side = min(sides(size))
    small = side <= 48
    patch = 4 if small else 8 if side <= 96 else 16
    if "model.name" not in asked:
        found["model.name"] = f"xcit_nano_12_p{max(patch, 8)}"
        found["model.patch_size"] = None if patch >= 8 else patch
    if seen.mean is not None and not asked & {"preprocessing.mean", "preprocessing.std"}:
        found["preprocessing.mean"] = [round(seen.mean, 3)]
        found["preprocessing.std"] = [round(seen.std or 1.0, 3)]
    if small:
        # Few pixels bear no zooming; and small grey pictures are mostly of letters and digits,
        # which mean something else in a mirror.
        found |= {"augment.crop": "padded", "augment.mixup": 0.0}
        if seen.mean is not None:
            found["augment.flip"] = 0.0
    return found


def _fit_training(seen: Look, draft: Recipe, asked: set[str], pace: _Pace) -> dict[str, Any]:
    batch = draft.optim.batch
    if "optim.batch" not in asked:
        room = max(8, min(pace.largest_batch, seen.pictures // 32))
        batch = 1 << int(math.log2(max(2, min(room, seen.pictures))))
    epochs = draft.optim.epochs
    if "optim.epochs" not in asked:
        epochs = round(pace.epochs * math.sqrt(1000 / seen.pictures))
        epochs = max(5, min(pace.most_epochs, epochs))
    steps = epochs * max(1, seen.pictures // batch)
    return {
        "optim.batch": batch,
        "optim.epochs": epochs,
        "optim.lr": float(f"{pace.rate * math.sqrt(batch / 32):.2g}"),
        "optim.warmup_epochs": round(min(3.0, epochs / 10), 2),
        # The average looks back over an eighth of the run, so it has forgotten the beginning.
        "optim.ema": round(max(0.5, 1 - 8 / steps), 5),
        "run.evaluate_every": max(1, epochs // 10),
        # Starting a process takes as long as decoding some hundred pictures.
        "data.workers": 0 if seen.pictures < 200 else max(1, min(8, usable_cores() // 2)),
    }


def _weights_at_hand(model: str | None) -> list[str]:
    """Published weights on this machine, the cheapest first and the better of equally cheap ones.

    Args:
        model: the only one to look for.
    """
    wanted = architecture_name(model) if model else None
    there = [
        entry
        for entry in catalog.entries()
        if (
            isinstance(find(entry.architecture), XCiTArchitecture)
            if wanted is None
            else wanted == entry.architecture
        )
        and catalog.present(entry)
    ]
    there.sort(
        key=lambda entry: (
            multiply_adds(find(entry.architecture), entry.resolution, entry.resolution),
            -entry.top1,
        )
    )
    return [entry.name for entry in there]


def _why(recipe: Recipe, asked: set[str], others: list[str]) -> str:
    weights = recipe.init.weights
    if weights is None:
        model = recipe.model.name if "model.name" in asked else tr("a small XCiT")
        if "init.weights" in asked:
            reason = tr("init.weights is null")
        elif "model.name" in asked:
            reason = tr(
                "no weights are named (--weights NAME) and no published ones of {model} lie here",
                model=model,
            )
        else:
            reason = tr("no weights are named (--weights NAME) and no published ones lie here")
        return tr(
            "recipe scratch, because {reason}: {model} is trained from scratch",
            reason=reason,
            model=model,
        )
    if "init.weights" in asked:
        return tr("recipe finetune, because weights are named: {weights}", weights=weights)
    said = tr(
        "recipe finetune, because these published weights lie here: {weights}", weights=weights
    )
    if others:
        said += tr("; also here: {weights} (--weights NAME)", weights=", ".join(others[:5]))
    return said


def _fitted(recipe: Recipe, seen: Look) -> str:
    optim = recipe.optim
    epochs = tr("1 epoch") if optim.epochs == 1 else tr("{count} epochs", count=optim.epochs)
    said = tr(
        "fitted to {pictures:,} {grey}training pictures of {classes} classes, about {side} px: "
        "{epochs} in batches of {batch}, rate {rate:g}",
        pictures=seen.pictures,
        grey="" if seen.mean is None else tr("grey "),
        classes=seen.classes,
        side=seen.side,
        epochs=epochs,
        batch=optim.batch,
        rate=optim.lr,
    )
    if not recipe.init.weights:
        said += tr(", input {size} px", size=in_pixels(recipe.preprocessing.size))
    return said + tr(" (--epochs, --batch, --lr, --size change them)")
