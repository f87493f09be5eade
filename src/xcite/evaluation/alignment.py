"""Do two engines, or an engine and somebody's own port, compute the same?

Both sides start from the same weights and see the same batches. Compared are, layer group by layer
group, the activations (evaluation and training mode), the loss, the gradients, the weights after
one optimiser step, BatchNorm's running statistics, and the losses of some more steps. Everything is
float32, without dropout, at a constant learning rate.

A dump is one side in files, for ports that run elsewhere:

    weights.safetensors     the weights (or weights.* in any dialect that `xcite inspect` reads)
    inputs.npz              "images" float32 (B, C, H, W), normalised; "labels" int64 (B,)
    activations.npz         evaluation mode: "patch_embed" (B, N, D), "blocks.0", ...,
                            "cls_attn_blocks.0" (B, 1 + N, D), ..., "norm", "head" (B, K);
                            RegNet: "stem", "s1.b1" (B, C, H, W), ..., "head"
    activations_train.npz   the same with the batch's own statistics
    gradients.npz           by canonical parameter name, of the mean cross entropy with the labels,
                            in training mode without drop path; also "loss", a scalar

Each of the last three files may be missing, and may name some of the tensors only.
"""

import itertools
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from xcite import canonical
from xcite.data.batch import Batch
from xcite.data.pipeline import TrainLoader
from xcite.engines import create_engine
from xcite.engines.interface import Engine
from xcite.engines.pixels import model_input
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.randomness import drop_path_scales, generator
from xcite.recipe import DistillRecipe, OptimRecipe, Recipe
from xcite.training import plan
from xcite.variants import Architecture, XCiTArchitecture, find
from xcite.weights import Metadata, open_weights, save_weights
from xcite.whole_files import whole_file

Arrays = dict[str, np.ndarray]

ACTIVATIONS = "activations, evaluation"
ACTIVATIONS_TRAIN = "activations, training"
LOSS = "loss"
GRADIENTS = "gradients"
STEP = "one optimiser step"
STATISTICS = "running statistics"
CURVE = "loss curve"


@dataclass(frozen=True)
class Tolerance:
    """How far two sides may be apart, and why so far.

    Attributes:
        limit: the largest `Row.relative` that counts as equal.
    """

    limit: float
    reason: str


TOLERANCES = {
    ACTIVATIONS: Tolerance(
        2e-5, "float32 sums in another order; float32 alone is within 1e-5 of float64"
    ),
    ACTIVATIONS_TRAIN: Tolerance(
        2e-4, "dividing by the deviation of a small batch magnifies that rounding about tenfold"
    ),
    LOSS: Tolerance(2e-5, "a mean over the batch of logits in training mode"),
    GRADIENTS: Tolerance(
        1e-3, "the rounding of the forward pass, magnified again by BatchNorm's backward pass"
    ),
    STEP: Tolerance(
        1e-2,
        "in units of the learning rate, where the gradient is clear of its own rounding; float32 "
        "weights of magnitude 1 cannot hold a step of 5e-4 more exactly than 1e-4 of it",
    ),
    STATISTICS: Tolerance(2e-5, "means and unbiased variances of the first training forward pass"),
    CURVE: Tolerance(1e-3, "each step feeds its rounding to the next"),
}
# Adam's first step is the gradient's sign: where the gradient is rounding noise (the key bias of
# class attention has none at all), so is the step. Such values are left out of `STEP`.
CLEAR = 1e-2  # of the group's largest magnitude
_DUMP_LIMIT = 8 * 2**30  # bytes an .npz may unfold to


@dataclass(frozen=True)
class Row:
    """One comparison: a layer group, a loss or a step.

    Attributes:
        absolute: largest absolute difference.
        relative: largest difference of a tensor over its largest magnitude on the second side (at
            least `CLEAR` of the group's); for `STEP` in units of the learning rate. Infinite where
            shapes differ or values are not finite.
    """

    kind: str
    group: str
    absolute: float
    relative: float
    within: bool


@dataclass(frozen=True)
class Report:
    """What `xcite align` found.

    Attributes:
        sides: what was compared, for example ["paddle", "torch"].
        losses: loss before each step, per side; empty when only a dump was compared.
        first_diverging: the first group in forward order that is too far apart; None if none is.
    """

    model: str
    sides: list[str]
    rows: list[Row]
    losses: dict[str, list[float]]
    first_diverging: str | None
    notes: list[str] = field(default_factory=list)

    @property
    def within(self) -> bool:
        return all(row.within for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Plain data; infinite differences are written as null."""
        rows = [asdict(row) for row in self.rows]
        for row in rows:
            for key in ("absolute", "relative"):
                row[key] = row[key] if math.isfinite(row[key]) else None
        return {
            "model": self.model,
            "sides": self.sides,
            "within": self.within,
            "first_diverging": self.first_diverging,
            "tolerances": {kind: asdict(tolerance) for kind, tolerance in TOLERANCES.items()},
            "rows": rows,
            "losses": self.losses,
            "notes": self.notes,
        }


@dataclass
class Side:
    """What one engine computed, or what a dump holds.

    Attributes:
        step: the change of each parameter in the first optimiser step, in learning rates.
        statistics: BatchNorm's running means and variances after that step.
    """

    name: str
    activations: Arrays = field(default_factory=dict)
    activations_train: Arrays = field(default_factory=dict)
    loss: float | None = None
    gradients: Arrays = field(default_factory=dict)
    step: Arrays = field(default_factory=dict)
    statistics: Arrays = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Trial:
    """What both sides are given.

    Attributes:
        architecture: without dropout and drop path, whose draws are the framework's own.
        batches: one per step.
        paths: drop-path scales per batch.
        answers: of a made-up teacher per batch; None without distillation.
        learning_rate: the same for all steps.
    """

    architecture: Architecture
    weights: canonical.Weights
    batches: list[Batch]
    paths: list[np.ndarray | None]
    answers: list[np.ndarray | None]
    preprocessing: Preprocessing
    optim: OptimRecipe
    distill: DistillRecipe
    attention: str = "auto"
    frozen: tuple[str, ...] = ()

    @property
    def learning_rate(self) -> float:
        return self.optim.lr


def trial(
    recipe: Recipe, architecture: Architecture, weights: canonical.Weights, batches: Sequence[Batch]
) -> Trial:
    """The trial of a recipe's model, loss and optimiser on given batches."""
    depth, rate = 0, 0.0
    if isinstance(architecture, XCiTArchitecture):
        depth, rate = architecture.depth, architecture.drop_path
        # Dropped paths are given with each step; left to itself a model would draw its own.
        architecture = replace(architecture, drop_rate=0.0, attn_drop_rate=0.0, drop_path=0.0)
    seed, loss = recipe.run.seed, recipe.distill.loss
    answers: list[np.ndarray | None] = [None] * len(batches)
    if loss != "none":
        # The loss is compared, not the teacher: any answers do, as long as both sides get them.
        drawn = [
            generator(seed, "teacher", step).standard_normal(
                (len(batch.labels), architecture.num_classes), np.float32
            )
            for step, batch in enumerate(batches)
        ]
        answers = [logits.argmax(1) if loss == "hard" else 3 * logits for logits in drawn]
    return Trial(
        architecture,
        weights,
        list(batches),
        [drop_path_scales(seed, batch.epoch, batch.views, depth, rate) for batch in batches],
        answers,
        recipe.preprocessing,
        recipe.optim,
        recipe.distill,
        recipe.run.attention,
        ("patch_embed.",) if recipe.init.freeze_patch_embed else (),
    )


def prepare(
    recipe: Recipe, steps: int, *, random: bool = False, classes: int | None = None
) -> tuple[Trial, list[str]]:
    """The trial of a recipe, and notes for people.

    The weights are those of ``init.weights``, else `moved_weights`.

    Args:
        random: noise instead of the recipe's pictures.
        classes: with ``random``; the variant's own by default.

    Raises:
        XciteError: data or weights that cannot be read.
    """
    if not random:
        prepared = plan.make(recipe)
        loader = TrainLoader(prepared.train, recipe)
        try:
            epochs = (loader.epoch(epoch) for epoch in itertools.count())
            batches = list(itertools.islice(itertools.chain.from_iterable(epochs), steps))
        finally:
            loader.close()
        architecture, weights = prepared.architecture, prepared.weights
        notes = [f"the first {steps} batches of {recipe.data.train}"]
    else:
        settings = {"num_classes": classes} if classes else {}
        architecture = find(
            recipe.model.name,
            in_chans=recipe.preprocessing.channels,
            **settings,
            **recipe.model.overrides(),
        )
        batches = random_batches(recipe, architecture.num_classes, steps)
        path, weights = recipe.init.weights, None
        if path:
            weights = open_weights(path, architecture=architecture).tensors
        notes = [f"{steps} batches of noise"]
    if weights is None:
        weights = moved_weights(architecture, recipe.run.seed)
        notes.append("initial weights, moved so that no two tensors are alike")
    return trial(recipe, architecture, weights, batches), notes


def moved_weights(architecture: Architecture, seed: int = 0) -> canonical.Weights:
    """Initial weights in which no two tensors of a shape are equal.

    All norms, LayerScales and biases start alike, so exchanging two of them would go unseen:
    constants are moved by a tenth, zeros by a twentieth of a normal deviate.
    """
    weights = canonical.initial_weights(architecture, seed)
    for name, value in weights.items():
        if value.dtype == np.float32 and (value == value.flat[0]).all():
            deviates = generator(seed, f"moved {name}").standard_normal(value.shape)
            constant = float(value.flat[0])
            moved = constant * np.exp(0.1 * deviates) if constant else 0.05 * deviates
            weights[name] = moved.astype(np.float32)
    return weights


def random_batches(recipe: Recipe, classes: int, count: int) -> list[Batch]:
    """Batches of noise with smoothed labels, for when the data are not at hand."""
    size, channels, batch = (
        recipe.preprocessing.size,
        recipe.preprocessing.channels,
        recipe.optim.batch,
    )
    smoothing = np.float32(recipe.augment.smoothing)
    batches = []
    for step in range(count):
        random = generator(recipe.run.seed, "alignment", step)
        labels = random.integers(0, classes, batch)
        targets = np.full((batch, classes), smoothing / classes, np.float32)
        targets[np.arange(batch), labels] += 1 - smoothing
        views = np.stack([step * batch + np.arange(batch), np.zeros(batch, np.int64)], axis=1)
        pictures = random.integers(0, 256, (batch, size, size, channels), np.uint8)
        batches.append(Batch(pictures, labels, views, targets))
    return batches


def measure(engine: str, given: Trial) -> Side:
    """Run the trial on an engine.

    Raises:
        XciteError: the engine is not installed, or the weights do not fit.
    """
    runner = create_engine(engine, given.architecture, attention=given.attention)
    runner.load_weights(given.weights)
    runner.start_training(given.optim, given.distill, given.preprocessing, frozen=given.frozen)
    first = given.batches[0]
    assert first.targets is not None  # as every training batch
    images = model_input(first, given.preprocessing)
    side = Side(engine, runner.activations(images), runner.activations(images, train=True))
    side.loss, side.gradients = runner.gradients(
        images, first.targets, paths=given.paths[0], teacher=given.answers[0]
    )
    before = runner.read_weights()
    for batch, scales, answers in zip(given.batches, given.paths, given.answers, strict=True):
        result = runner.train_step(
            [batch], learning_rate=given.learning_rate, paths=[scales], teacher=[answers]
        )
        side.losses.append(result.loss)
        if len(side.losses) == 1:
            after = runner.read_weights()
            for name, value in after.items():
                if canonical.is_parameter(name):
                    moved = value.astype(np.float64) - before[name]
                    side.step[name] = moved / given.learning_rate
                elif not name.endswith("num_batches_tracked"):
                    side.statistics[name] = value
    return side


def compare(model: str, first: Side, second: Side, notes: Sequence[str] = ()) -> Report:
    """Compare what two sides computed; only what both have.

    Raises:
        XciteError: they have nothing in common.
    """
    rows: list[Row] = []
    for kind, ours, theirs in (
        (ACTIVATIONS, first.activations, second.activations),
        (ACTIVATIONS_TRAIN, first.activations_train, second.activations_train),
    ):
        rows += [_row(kind, name, [(ours[name], theirs[name])]) for name in ours if name in theirs]
    if first.loss is not None and second.loss is not None:
        rows.append(_row(LOSS, "first batch", [(np.array(first.loss), np.array(second.loss))]))
    rows += _grouped(GRADIENTS, first.gradients, second.gradients)
    rows += _steps(first, second)
    rows += _grouped(STATISTICS, first.statistics, second.statistics)
    for number, (ours_, theirs_) in enumerate(zip(first.losses, second.losses, strict=False), 1):
        rows.append(_row(CURVE, f"step {number}", [(np.array(ours_), np.array(theirs_))]))
    if not rows:
        raise XciteError(f"{first.name} and {second.name} have no tensor in common to compare")
    losses = {side.name: side.losses for side in (first, second) if side.losses}
    failing = next((row for row in rows if not row.within), None)
    return Report(
        model,
        [first.name, second.name],
        rows,
        losses,
        f"{failing.group} ({failing.kind})" if failing else None,
        list(notes),
    )


def layer(name: str) -> str:
    """The layer group a canonical tensor belongs to, such as "blocks.3", "s1.b2" or "head"."""
    pieces = name.split(".")
    in_stage = pieces[0] in ("blocks", "cls_attn_blocks") or (
        pieces[0][0] == "s" and pieces[0][1:].isdigit()
    )
    return ".".join(pieces[:2]) if in_stage else pieces[0]


_FORWARD = ("patch_embed", "stem", "pos_embeder", "blocks", "s", "cls_token", "cls_attn_blocks")


def forward_order(group: str) -> tuple[int, list[int]]:
    """A key that sorts layer groups as the data pass through them."""
    start = group.split(".")[0]
    start = "s" if start[1:].isdigit() else start
    place = _FORWARD.index(start) if start in _FORWARD else len(_FORWARD) + (group == "head")
    digits = "".join(c if c.isdigit() else " " for c in group).split()
    return place, [int(number) for number in digits]


def _by_group(names: Mapping[str, object], others: Mapping[str, object]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        if name in others:
            groups.setdefault(layer(name), []).append(name)
    return {group: groups[group] for group in sorted(groups, key=forward_order)}


def _grouped(kind: str, ours: Arrays, theirs: Arrays) -> list[Row]:
    return [
        _row(kind, group, [(ours[name], theirs[name]) for name in names])
        for group, names in _by_group(ours, theirs).items()
    ]


def _steps(first: Side, second: Side) -> list[Row]:
    """Weights after one step, where the gradient is clear of rounding."""
    rows = []
    for group, names in _by_group(first.step, second.step).items():
        largest = max(float(np.abs(second.gradients[name]).max()) for name in names)
        worst = 0.0
        for name in names:
            clear = np.abs(second.gradients[name]) > CLEAR * largest
            apart = np.abs(first.step[name] - second.step[name])[clear]
            worst = max(worst, float(apart.max(initial=0.0)))
        worst = worst if math.isfinite(worst) else math.inf
        rows.append(Row(STEP, group, worst, worst, worst <= TOLERANCES[STEP].limit))
    return rows


def _row(kind: str, group: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Row:
    """Compare the tensors of a group, each by its own magnitude."""
    if any(ours.shape != theirs.shape for ours, theirs in pairs):
        return Row(kind, group, math.inf, math.inf, False)
    apart = [float(np.abs(ours.astype(np.float64) - theirs).max()) for ours, theirs in pairs]
    size = [float(np.abs(theirs).max()) for _, theirs in pairs]
    if not np.isfinite(apart + size).all():
        return Row(kind, group, math.inf, math.inf, False)
    floor = CLEAR * max(size)  # below it a tensor is rounding: class attention's key bias
    relative = max(
        difference / max(own, floor) if max(own, floor) else (math.inf if difference else 0.0)
        for difference, own in zip(apart, size, strict=True)
    )
    return Row(kind, group, max(apart), relative, relative <= TOLERANCES[kind].limit)


# ---- dumps -------------------------------------------------------------------------------------


def write_dump(engine: str, given: Trial, folder: Path) -> None:
    """Compute what a dump holds on an engine, from the first batch of a trial, and write it.

    Raises:
        XciteError: the engine is not installed, or the folder cannot be written.
    """
    runner = create_engine(engine, given.architecture, attention=given.attention)
    runner.load_weights(given.weights)
    images = model_input(given.batches[0], given.preprocessing)
    labels = given.batches[0].labels
    metadata = Metadata(architecture=asdict(given.architecture))
    save_weights(folder / "weights.safetensors", given.weights, metadata)
    _write_npz(folder / "inputs.npz", {"images": images, "labels": labels})
    side = _measure_dumped(runner, images, labels, given.preprocessing)
    _write_npz(folder / "activations.npz", side.activations)
    _write_npz(folder / "activations_train.npz", side.activations_train)
    _write_npz(folder / "gradients.npz", {**side.gradients, "loss": np.array(side.loss)})


def compare_with_dump(engine: str, architecture: Architecture, folder: Path, model: str) -> Report:
    """Run an engine on a dump's inputs and weights and compare with what the dump holds.

    Raises:
        XciteError: files missing, damaged, or with names that the model does not have.
    """
    if isinstance(architecture, XCiTArchitecture):
        architecture = replace(architecture, drop_rate=0.0, attn_drop_rate=0.0, drop_path=0.0)
    inputs = _read_npz(folder / "inputs.npz")
    images, labels = _inputs(inputs, architecture, folder)
    theirs = Side("reference")
    theirs.activations = _read_npz(folder / "activations.npz", optional=True)
    theirs.activations_train = _read_npz(folder / "activations_train.npz", optional=True)
    theirs.gradients = _read_npz(folder / "gradients.npz", optional=True)
    loss = theirs.gradients.pop("loss", None)
    theirs.loss = float(loss) if loss is not None and loss.size == 1 else None
    found = sorted(folder.glob("weights.*"))
    if len(found) != 1:
        raise XciteError(f"{folder} needs one weights.* file and has {len(found)}")
    runner = create_engine(engine, architecture)
    runner.load_weights(open_weights(found[0], architecture=architecture).tensors)
    channels = architecture.in_chans
    preprocessing = Preprocessing(
        size=images.shape[-1], mean=(0.0,) * channels, std=(1.0,) * channels
    )
    ours = _measure_dumped(runner, images, labels, preprocessing)
    for file, known, given in (
        ("activations.npz", ours.activations, theirs.activations),
        ("activations_train.npz", ours.activations_train, theirs.activations_train),
        ("gradients.npz", ours.gradients, theirs.gradients),
    ):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise XciteError(
                f"{folder / file} holds {', '.join(unknown[:5])}, which the model does not have; "
                f"its names are {', '.join(list(known)[:5])}, ..."
            )
    notes = [
        f"the reference leaves out {len(known) - len(given)} of {len(known)} {what}"
        for what, known, given in (
            ("activations", ours.activations, theirs.activations),
            ("activations in training mode", ours.activations_train, theirs.activations_train),
            ("gradients", ours.gradients, theirs.gradients),
        )
        if len(given) < len(known)
    ]
    return compare(model, ours, theirs, notes)


def _measure_dumped(
    runner: Engine, images: np.ndarray, labels: np.ndarray, preprocessing: Preprocessing
) -> Side:
    """Activations and gradients of given images; the loss is plain mean cross entropy."""
    runner.start_training(OptimRecipe(batch=len(images)), DistillRecipe(), preprocessing)
    targets = np.eye(runner.architecture.num_classes, dtype=np.float32)[labels]
    loss, gradients = runner.gradients(images, targets)
    return Side(
        runner.name,
        runner.activations(images),
        runner.activations(images, train=True),
        loss,
        gradients,
    )


def _inputs(
    inputs: Arrays, architecture: Architecture, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    images, labels = inputs.get("images"), inputs.get("labels")
    where = folder / "inputs.npz"
    if images is None or labels is None:
        raise XciteError(f"{where} must hold 'images' (B, C, H, W) and 'labels' (B,)")
    if images.ndim != 4 or images.shape[1] != architecture.in_chans or images.dtype.kind != "f":
        raise XciteError(
            f"{where}: images are {images.dtype} {images.shape}; expected float32 "
            f"(B, {architecture.in_chans}, H, W)"
        )
    in_range = labels.shape == (len(images),) and labels.dtype.kind in "iu"
    if not in_range or labels.min() < 0 or labels.max() >= architecture.num_classes:
        raise XciteError(
            f"{where}: labels must be {len(images)} class numbers below {architecture.num_classes}"
        )
    return images.astype(np.float32), labels.astype(np.int64)


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with whole_file(path) as aside, aside.open("wb") as stream:
        np.savez(stream, **dict(arrays))  # type: ignore[arg-type]


def _read_npz(path: Path, *, optional: bool = False) -> Arrays:
    """Arrays of an .npz; pickled objects are refused, and so is a file that unfolds too far."""
    if optional and not path.is_file():
        return {}
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _DUMP_LIMIT:
                raise XciteError(f"{path} unfolds to more than {_DUMP_LIMIT / 2**30:.0f} GiB")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise XciteError(f"there is no {path}; `xcite align --help` names the files") from error
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, MemoryError) as error:
        raise XciteError(f"{path} cannot be read: {error}") from error
