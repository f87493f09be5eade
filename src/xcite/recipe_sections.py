"""The sections of a recipe, typed: every key, its default and what it means."""

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from xcite.choices import Choices
from xcite.families import Settings
from xcite.preprocessing import Preprocessing, Size
from xcite.variants import paper_drop_path

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
    def replaces_labels(self) -> bool:
        """Whether the teacher alone is heard, all the run long."""
        return self.question is not None and self.alpha == 1 and self.alpha_end in (None, 1)

    @property
    def temperature(self) -> float:
        """The temperature at which the loss compares probabilities."""
        return self.tau if self.question and self.question.tempered else 1.0


DEVICE = r"auto|cpu|mps|(gpu|cuda|xpu)(:\d{1,3})?"
DEVICES = "choose auto, cpu, gpu, cuda, xpu or mps, the middle three with :N for one of several"


class RunRecipe(Section):
    """How the run itself goes."""

    seed: int = Field(default=0, ge=0)
    engine: Literal["paddle", "torch"] = "paddle"
    device: str = Field(
        default="auto", description="auto: a GPU if there is one; cpu, gpu, cuda:1, mps, xpu ..."
    )
    precision: Literal["auto", "float32", "tf32", "bf16"] = Field(
        default="auto",
        description="auto: bf16 where the machine has instructions for it, else float32; tf32: "
        "float32 whose products NVIDIA's GPUs round to 10 bits",
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
    sync_batch_norm: bool = Field(
        default=True,
        description="with several processes: BatchNorm over the pictures of all of them, so that "
        "their number changes nothing; false: each over its own",
    )
    compile: bool | Literal["cuda-graphs"] = Field(
        default=False,
        description="PyTorch only: torch.compile; cuda-graphs: and replay its kernels as graphs",
    )
    evaluate_every: int = Field(default=1, ge=1, description="epochs")
    keep: int = Field(default=1, ge=0, description="numbered checkpoints kept beside last and best")
    checkpoint_every: int = Field(default=1, ge=1, description="epochs")
    checkpoint_minutes: Positive | None = Field(
        default=5.0, description="within an epoch; empty: never"
    )
    log_every: int = Field(default=10, ge=1, description="steps")
    process_timeout: Positive = Field(
        default=600.0,
        description="seconds; several processes: until one is given up that gets on no more",
    )
    record_views: bool = Field(
        default=False, description="write which pictures each step used: views-PROCESS.csv"
    )
    tensorboard: bool = False

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(DEVICE, device):
            raise ValueError(DEVICES)
        return device
