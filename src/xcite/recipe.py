"""The typed recipe: everything a run depends on, in one YAML file.

A recipe is read, checked and never guessed at: an unknown key, a wrong type or a contradiction is
refused before anything runs, with the key's path and the nearest valid name.
"""

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from xcite.choices import Choices
from xcite.errors import XciteError
from xcite.families import Settings
from xcite.preprocessing import Preprocessing, Size
from xcite.recipe_text import LONGEST, apply_setting, place, read_yaml, section_type, write_yaml
from xcite.regular_files import read_regular
from xcite.variants import find, paper_drop_path

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A part of the recipe: immutable, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _Named(Section):
    name: str = Field(
        default="xcit_nano_12_p8",
        description="architecture, see `xcite models`; left out beside init.weights: theirs",
    )


class ModelRecipe(Settings, _Named):
    """Which model is trained. Fields left empty come from the named variant."""

    def overrides(self) -> dict[str, Any]:
        """The fields that differ from the named variant."""
        fields = self.model_dump(exclude={"name"}, exclude_none=True)
        if self.drop_path == "paper":
            fields["drop_path"] = paper_drop_path(self.name)
        return fields


class InitRecipe(Section):
    """Where the weights come from; empty: drawn from the seed."""

    weights: str | None = Field(
        default=None, description="a file, a run folder or a published name"
    )
    dialect: str | None = Field(
        default=None, description="only when it is not recognised by itself"
    )
    reset_head: bool | Literal["auto"] = Field(
        default=False,
        description="draw the classifier anew; auto: unless the weights know these classes",
    )
    adapt_channels: bool = Field(default=False, description="fit the stem to other input channels")
    freeze_patch_embed: bool = Field(
        default=False, description="the official 'surgery': the stem stays"
    )

    @property
    def frozen(self) -> tuple[str, ...]:
        """Prefixes of the names of weights that are not trained."""
        return ("patch_embed.",) if self.freeze_patch_embed else ()


class DataRecipe(Section):
    """Where the pictures are."""

    train: str = Field(
        default="digits", description="folder, archives, list file or 'digits', see docs/data.md"
    )
    validation: str | None = Field(
        default=None, description="the same; empty: none but what is held out"
    )
    holdout: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="share of the training pictures held out where validation is empty",
    )
    labels: bool = Field(
        default=True,
        description="false: all pictures of data.train, of whatever folder, without their classes, "
        "to learn from a teacher alone",
    )
    root: str | None = Field(default=None, description="folder that a list file's paths start from")
    outside_root: bool = Field(
        default=False,
        description="allow listed paths and tar members that lead out of their root by '..', and "
        "absolute paths beside a root; an absolute path without a root is always allowed",
    )
    classes: str | None = Field(default=None, description="file of class names, one a line")
    columns: str | None = Field(
        default=None,
        description="of a CSV: names of the columns of path and label, as 'image,label'",
    )
    workers: int = Field(default=2, ge=0, le=64)
    prefetch: int = Field(default=2, ge=1, le=64, description="batches read ahead per worker")
    worker_timeout: Positive = Field(
        default=300.0, description="seconds to wait for a batch before a worker counts as stuck"
    )
    repeats: int = Field(
        default=1, ge=1, le=16, description="repeated augmentation: copies per picture"
    )
    on_error: Literal["stop", "skip"] = "stop"
    skip_limit: int | None = Field(
        default=None,
        ge=0,
        description="pictures of a source that may be skipped before the run stops; empty: 1 % of "
        "them, at least 10 and at most 100",
    )
    max_pixels: int = Field(
        default=178_956_970, ge=1, description="a larger picture is refused as a bomb"
    )
    fast: bool = Field(
        default=False,
        description="training only, other pixels by a level or so: JPEG is decoded at 1/2, 1/4 or "
        "1/8 where the crop allows; random_resized crops are resized with SIMD (needs xcite[fast])",
    )


class AugmentRecipe(Section):
    """What is done to a training picture, in this order."""

    scale: tuple[Positive, Positive] = Field(default=(0.08, 1.0), strict=False)
    ratio: tuple[Positive, Positive] = Field(default=(3 / 4, 4 / 3), strict=False)
    crop: Literal["random_resized", "padded", "none"] = Field(
        default="random_resized",
        description="padded: shift by up to 1/8 of the side; none: as evaluation",
    )
    flip: Probability = 0.5
    randaugment: str | None = Field(default="rand-m9-mstd0.5-inc1", description="empty: off")
    color_jitter: NotNegative = Field(
        default=0.0, description="acts only without randaugment, as in timm"
    )
    erasing: Probability = Field(default=0.25, description="random erasing in pixel mode")
    mixup: NotNegative = Field(default=0.8, description="alpha of mixup; 0: off")
    cutmix: NotNegative = Field(default=1.0, description="alpha of cutmix; 0: off")
    mix_probability: Probability = 1.0
    switch_probability: Probability = Field(default=0.5, description="of cutmix where both are on")
    mix_mode: Literal["batch", "pair", "elem"] = "batch"
    cutmix_box: Literal["timm-0.4.9", "timm-1.0"] = Field(
        default="timm-0.4.9", description="0.4.9, which XCiT used, shortens odd boxes by one"
    )
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    targets: Literal["soft", "hard"] = Field(
        default="soft", description="hard: one class a picture, so neither mixing nor smoothing"
    )

    @property
    def mixes(self) -> bool:
        """Whether pictures are mixed at all."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_probability > 0


class OptimRecipe(Section):
    """AdamW and its learning rate."""

    epochs: int = Field(default=400, ge=1)
    batch: int = Field(default=1024, ge=1, description="pictures per step over all processes")
    accumulate: int = Field(default=1, ge=1, description="parts into which a step's batch is cut")
    lr: Positive = 5e-4
    lr_per: int | None = Field(
        default=512, ge=1, description="lr is scaled by batch / this; empty: not scaled"
    )
    min_lr: NotNegative = 1e-5
    warmup_lr: NotNegative = 1e-6
    warmup_epochs: NotNegative = 5.0
    schedule: Literal["cosine", "cosine-after-warmup", "official", "constant"] = Field(
        default="cosine",
        description="cosine: reaches min_lr at the end; cosine-after-warmup: PASSL's; "
        "official: main.py's, constant within an epoch and one epoch late",
    )
    weight_decay: NotNegative = 0.05
    decay_rule: Literal["brief", "official", "passl"] = Field(
        default="brief", description="which parameters decay: the public codes disagree"
    )
    betas: tuple[Probability, Probability] = Field(default=(0.9, 0.999), strict=False)
    eps: Positive = 1e-8
    clip: Positive | None = Field(default=None, description="largest gradient norm")
    ema: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="EMA decay; empty: off"
    )


class Question(NamedTuple):
    """What a distillation loss asks a teacher.

    Attributes:
        answers: "classes" int64 (B,), "logits" float32 (B, K) or "features" float32 (B, D).
        tempered: whether the loss compares probabilities at temperature ``tau``.
    """

    answers: Literal["classes", "logits", "features"]
    tempered: bool = False


# One row per value of `DistillRecipe.loss` but "none"; each engine's losses.py computes them.
QUESTIONS = {
    "hard": Question("classes"),
    "soft": Question("logits", tempered=True),
    "dml": Question("logits"),
    "cosine": Question("features"),
}


class DistillRecipe(Section):
    """The teacher, if there is one."""

    loss: Literal["none", "hard", "soft", "dml", "cosine"] = "none"
    space: Literal["classes", "teacher-classes", "features"] = Field(
        default="classes",
        description="what the student learns of the teacher: the student's classes, or through a "
        "projection that is dropped at the end all of the teacher's, or its features ('cosine')",
    )
    alpha: Probability = Field(default=0.5, description="weight of the distillation part")
    tau: Positive = Field(default=1.0, description="temperature of 'soft'")
    alpha_end: Probability | None = Field(
        default=None, description="alpha in the last step; empty: constant"
    )
    tau_end: Positive | None = Field(
        default=None, description="tau in the last step; empty: constant"
    )
    schedule: Literal["linear", "cosine"] = Field(
        default="linear", description="how alpha and tau go from first to last"
    )
    teacher: str | None = Field(
        default=None,
        description="weights, run folder, bundle, or a program: .onnx, .xml, .pt2, TorchScript, "
        "Paddle",
    )
    teacher_model: ModelRecipe | None = Field(
        default=None, description="empty: read from the weights"
    )
    teacher_size: Size | None = Field(
        default=None, description="its input's side, or [height, width]; empty: its file's, or same"
    )
    teacher_mean: Annotated[tuple[float, ...], Field(strict=False)] | None = Field(
        default=None, description="one a channel; empty: its file's"
    )
    teacher_std: Annotated[tuple[float, ...], Field(strict=False)] | None = Field(
        default=None, description="the same; give both or neither"
    )
    teacher_engine: Literal["paddle", "torch"] | None = Field(
        default=None, description="empty: same"
    )
    cache: str | None = Field(default=None, description="folder written by `xcite teach`")
    views: int | None = Field(default=None, ge=1, description="epochs cached; empty: all of them")
    top: int = Field(default=16, ge=1, description="soft cache: probabilities kept per picture")

    @model_validator(mode="after")
    def _mean_and_std_together(self) -> "DistillRecipe":
        if (self.teacher_mean is None) != (self.teacher_std is None):
            raise ValueError("distill.teacher_mean and distill.teacher_std go together; give both")
        if self.teacher_mean is not None and self.teacher_std is not None:
            try:
                Preprocessing(mean=self.teacher_mean, std=self.teacher_std)
            except ValidationError as error:
                said = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"distill.teacher_mean and distill.teacher_std: {said}") from None
        return self

    @property
    def question(self) -> Question | None:
        """What the loss asks the teacher; None without distillation."""
        return QUESTIONS.get(self.loss)

    @property
    def changing(self) -> dict[str, tuple[float, float]]:
        """First and last value of "alpha" and "tau", of those that change over the run."""
        ends = {"alpha": (self.alpha, self.alpha_end), "tau": (self.tau, self.tau_end)}
        return {name: (first, last) for name, (first, last) in ends.items() if last is not None}

    @property
    def temperature(self) -> float:
        """The temperature at which the loss compares probabilities."""
        return self.tau if self.question and self.question.tempered else 1.0


class RunRecipe(Section):
    """How the run itself goes."""

    seed: int = Field(default=0, ge=0)
    engine: Literal["paddle", "torch"] = "paddle"
    device: Literal["auto", "cpu", "gpu"] = Field(
        default="auto", description="auto: a GPU if there is one"
    )
    precision: Literal["auto", "float32", "bf16"] = Field(
        default="auto",
        description="auto: bf16 where the machine has instructions for it, else float32",
    )
    operators: Literal["fast", "plain"] = Field(
        default="fast", description="plain: slower, computed as the paper writes it"
    )
    attention: Literal["auto", "usual", "covariance"] = "auto"
    tune: Literal["auto", "off"] = Field(
        default="auto", description="auto: a long run begins by finding its fastest choices"
    )
    choices: Choices | None = Field(
        default=None, description="among exact alternatives; empty: as fits this machine"
    )
    activation_checkpointing: bool = False
    compile: bool = Field(default=False, description="torch.compile; PyTorch only")
    evaluate_every: int = Field(default=1, ge=1, description="epochs")
    keep: int = Field(default=1, ge=0, description="numbered checkpoints kept beside last and best")
    checkpoint_every: int = Field(default=1, ge=1, description="epochs")
    checkpoint_minutes: Positive | None = Field(
        default=5.0, description="within an epoch; empty: never"
    )
    log_every: int = Field(default=10, ge=1, description="steps")
    tensorboard: bool = False


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
