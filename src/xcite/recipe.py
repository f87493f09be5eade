"""The typed recipe: everything a run depends on, in one YAML file.

A recipe is read, checked and never guessed at: an unknown key, a wrong type or a contradiction is
refused before anything runs, with the key's path and the nearest valid name.
"""

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.recipe_sections import (
    AugmentRecipe,
    DataRecipe,
    DistillRecipe,
    InitRecipe,
    ModelRecipe,
    OptimRecipe,
    RunRecipe,
    Section,
)
from xcite.recipe_text import LONGEST, apply_setting, place, read_yaml, section_type, write_yaml
from xcite.regular_files import read_regular
from xcite.variants import find

__all__ = [
    "AugmentRecipe",
    "DataRecipe",
    "DistillRecipe",
    "InitRecipe",
    "ModelRecipe",
    "OptimRecipe",
    "Preprocessing",
    "Recipe",
    "RunRecipe",
    "Section",
    "digest",
    "dump",
    "load",
    "parse",
    "shipped",
    "with_values",
]


class Recipe(Section):
    """A whole run."""

    model: ModelRecipe = ModelRecipe()
    init: InitRecipe = InitRecipe()
    data: DataRecipe = DataRecipe()
    preprocessing: Preprocessing = Preprocessing()
    augment: AugmentRecipe = AugmentRecipe()
    optim: OptimRecipe = OptimRecipe()
    distill: DistillRecipe = DistillRecipe()
    run: RunRecipe = RunRecipe()

    @model_validator(mode="after")
    def _no_contradictions(self) -> "Recipe":
        find(self.model.name, **self.model.overrides())
        augment = self.augment
        if augment.targets == "hard" and augment.mixes:
            raise ValueError(
                "mixup and cutmix need soft targets: set augment.targets to soft, "
                "or augment.mixup and augment.cutmix to 0"
            )
        if augment.targets == "hard" and augment.smoothing:
            raise ValueError(
                "augment.smoothing needs soft targets: set augment.targets to soft, "
                "or augment.smoothing to 0"
            )
        for name, (low, high) in (("scale", augment.scale), ("ratio", augment.ratio)):
            if low > high:
                raise ValueError(f"augment.{name} is ({low}, {high}); the lower value comes first")
        if augment.mixes and augment.mix_mode == "pair" and self.optim.batch % 2:
            raise ValueError("augment.mix_mode 'pair' needs an even optim.batch")
        if self.optim.batch % self.optim.accumulate:
            raise ValueError(
                f"optim.batch {self.optim.batch} is not a multiple of "
                f"optim.accumulate {self.optim.accumulate}"
            )
        part = self.optim.batch // self.optim.accumulate
        if self.optim.accumulate > 1 and part < 2:
            raise ValueError(
                f"optim.accumulate {self.optim.accumulate} leaves one picture in a part; pictures "
                "travel with their mixing partner, so at most optim.batch / 2 parts are possible"
            )
        if self.preprocessing.channels not in (1, 3):
            for key in ("randaugment", "color_jitter"):
                if getattr(self.augment, key):
                    raise ValueError(
                        f"augment.{key} knows colours of 1 or 3 channels, and preprocessing.mean "
                        f"has {self.preprocessing.channels} values; set augment.{key} to "
                        + ("null" if key == "randaugment" else "0")
                    )
        if self.augment.randaugment and self.augment.color_jitter:
            raise ValueError(
                "augment.color_jitter acts only without augment.randaugment; switch one of them off"
            )
        if self.distill.loss == "none" and (self.distill.teacher or self.distill.cache):
            raise ValueError("distill.teacher is given but distill.loss is 'none'")
        if self.distill.loss != "none" and not (self.distill.teacher or self.distill.cache):
            raise ValueError("distill.loss needs distill.teacher or distill.cache")
        if (self.distill.loss == "cosine") != (self.distill.space == "features"):
            raise ValueError(
                "distill.loss 'cosine' and distill.space 'features' belong together: set both, or "
                "neither"
            )
        if not self.data.labels:
            if self.distill.space == "classes":
                raise ValueError(
                    "data.labels false leaves a teacher alone to learn from: set distill.loss and "
                    "distill.space to teacher-classes or features"
                )
            if self.data.validation or self.data.holdout:
                raise ValueError(
                    "data.labels false leaves nothing to evaluate against: set data.validation and "
                    "data.holdout to nothing"
                )
        question = self.distill.question
        if self.distill.alpha_end is not None and question is None:
            raise ValueError("distill.alpha_end needs distill.loss")
        if self.distill.tau_end is not None and not (question and question.tempered):
            raise ValueError("distill.tau_end needs distill.loss 'soft'")
        if self.optim.warmup_epochs > self.optim.epochs:
            raise ValueError(
                f"optim.warmup_epochs {self.optim.warmup_epochs:g} is longer than optim.epochs "
                f"{self.optim.epochs}; set optim.warmup_epochs lower"
            )
        if max(self.optim.betas) >= 1:
            raise ValueError("optim.betas must be below 1")
        if self.init.reset_head is True and not self.init.weights:
            raise ValueError("init.reset_head needs init.weights")
        if self.init.freeze_patch_embed and not self.init.weights:
            raise ValueError("init.freeze_patch_embed needs init.weights, or the stem stays random")
        if self.run.compile and self.run.engine != "torch":
            raise ValueError("run.compile needs run.engine 'torch'")
        if self.run.operators == "plain" and self.run.attention == "covariance":
            raise ValueError(
                "run.operators 'plain' has no covariance form of attention; set run.attention to "
                "usual or auto, or run.operators to fast"
            )
        return self

    def learning_rate(self) -> float:
        """Peak learning rate after linear scaling with the batch."""
        scale = self.optim.batch / self.optim.lr_per if self.optim.lr_per else 1.0
        return self.optim.lr * scale


def shipped() -> list[str]:
    """Names of the recipes inside the package."""
    folder = resources.files("xcite").joinpath("recipes")
    return sorted(
        p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml")
    )


def with_values(recipe: Recipe, section: str, **values: Any) -> Recipe:
    """The recipe with some values of a section, which count as set."""
    changed = getattr(recipe, section).model_copy(update=values)
    return recipe.model_copy(update={section: changed})


def digest(recipe: Recipe) -> str:
    """A hash of everything the recipe says, SHA-256 in hexadecimal."""
    return hashlib.sha256(dump(recipe).encode()).hexdigest()


def load(
    name: str, settings: Sequence[str] = (), fitted: Mapping[str, Any] | None = None
) -> Recipe:
    """Read a shipped recipe, a file of whatever name or a run folder's; apply ``a.b=c`` settings.

    Args:
        fitted: dotted key to value, put over the recipe's own and under the settings.

    Raises:
        XciteError: no such recipe, not YAML, unknown key, wrong type or a contradiction.
    """
    path = Path(name)
    if path.is_dir() and (path / "recipe.yaml").is_file():
        path = path / "recipe.yaml"
    if path.suffix in (".yaml", ".yml") or (path.is_file() and name not in shipped()):
        try:
            text = read_regular(path, size=LONGEST + 1).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise XciteError(f"cannot read the recipe {name}: {error}") from error
    elif name in shipped():
        text = resources.files("xcite").joinpath("recipes", f"{name}.yaml").read_text("utf-8")
    else:
        near = difflib.get_close_matches(name, shipped(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"shipped: {', '.join(shipped())}"
        raise XciteError(
            f"no recipe {name!r}, nor pictures of that name; give a file, a shipped name or a "
            f"folder of pictures; {hint}"
        )
    return parse(text, name, settings, fitted)


def parse(
    text: str,
    origin: str,
    settings: Sequence[str] = (),
    fitted: Mapping[str, Any] | None = None,
) -> Recipe:
    """Make a `Recipe` of YAML text; ``origin`` names it in errors, for the rest see `load`."""
    values = read_yaml(text, origin)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise XciteError(f"{origin}: a recipe is a mapping of sections, not a {_kind(values)}")
    values = {name: section for name, section in values.items() if section is not None}
    for name, found in (fitted or {}).items():
        place(values, name.split("."), found, origin)
    for setting in settings:
        apply_setting(values, setting, Recipe)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise XciteError(f"{origin}: {_explain(error)}") from error


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return write_yaml(recipe.model_dump(mode="json"))


def _kind(value: Any) -> str:
    return {list: "list", str: "text", int: "number", float: "number"}.get(type(value), "value")


def _explain(error: ValidationError) -> str:
    parts = []
    for problem in error.errors()[:5]:
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _known(problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            parts.append(f"unknown key {path}; {hint}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "string_type" and problem["input"] is not None:
                message += "; put it in quotes"  # YAML made a number or the like of it
            given = f" (given: {problem['input']!r})" if path and problem["loc"] else ""
            parts.append(f"{path}: {message}{given[:80]}" if path else message)
    return "; ".join(parts)


def _known(path: tuple[Any, ...]) -> list[str]:
    model: Any = Recipe
    for part in path:
        model = section_type(model.model_fields[part].annotation)
    return list(model.model_fields)
