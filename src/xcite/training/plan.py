"""What a run will do, found out and checked before anything is trained or written."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from xcite import canonical
from xcite.canonical import parameter_count
from xcite.choices import default_choices
from xcite.cost import activations
from xcite.data.pipeline import TrainLoader
from xcite.data.sources import Source
from xcite.engines import engine_package
from xcite.errors import XciteError
from xcite.families import Architecture
from xcite.language import padded, tr, translated
from xcite.preprocessing import in_pixels
from xcite.recipe import Recipe
from xcite.recipe_sections import RunRecipe
from xcite.training import initial, schedules
from xcite.training.computing import settle_precision
from xcite.training.projection import widen, widened
from xcite.training.run_data import RunData, open_data
from xcite.training.run_folder import RunFolder
from xcite.training.splitting import Split
from xcite.training.teachers import build as teachers
from xcite.variants import find


@dataclass(frozen=True)
class Plan:
    """A recipe together with the data it found.

    Attributes:
        recipe: complete: what it left to the weights is decided.
        train: the training pictures; their classes are the model's.
        validation: the pictures to evaluate on, with the same classes; None without them.
        architecture: the student, its channels and classes settled.
        projected: outputs that it has beside its classes while it learns (`distill.space`).
        weights: canonical weights to start from; None draws them from the seed.
        found: what the data are and what looks wrong about them, in lines for people.
        notes: what a person should know though it is no error.
        split: where validation pictures were held out of the training pictures.
    """

    recipe: Recipe
    train: Source
    validation: Source | None
    architecture: Architecture
    weights: dict[str, np.ndarray] | None = None
    found: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    split: Split | None = None
    projected: int = 0

    @property
    def built(self) -> Architecture:
        """The model to be built: the student with its projection."""
        return widened(self.architecture, self.projected)

    @property
    def student(self) -> Architecture:
        """The model whose weights leave the run: without classes where no labels were seen."""
        if self.recipe.data.labels:
            return self.architecture
        return replace(self.architecture, num_classes=0)

    @property
    def pictures(self) -> dict[str, int]:
        """How many there are of "train" and "validation"."""
        return {"train": len(self.train), "validation": len(self.validation or ())}

    @property
    def class_names(self) -> list[str]:
        return list(self.train.class_names)

    def lines(self) -> list[str]:
        """The plan in words, for `xcite train --dry-run`."""
        recipe, a = self.recipe, self.architecture
        seen = recipe.preprocessing
        steps = TrainLoader(self.train, recipe).steps_per_epoch
        classes = self.class_names
        shown = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
        size = f"{seen.channels} x {seen.height} x {seen.width}"
        memory = tr(
            "about {size:.1f} GiB for weights, optimiser and activations of a step, the framework "
            "itself not counted",
            size=estimated_memory(recipe, a) / 2**30,
        )
        rows = [
            (tr("training data"), _source_in_words(self.train, recipe.data.train)),
            (tr("validation data"), self._validation_in_words()),
            (tr("classes"), f"{len(classes)}: {shown}"),
            (tr("model"), recipe.model.name + a.in_words(seen.height, seen.width)),
            (tr("parameters"), f"{parameter_count(a):,}"),
            (tr("input"), tr("{size}, crop ratio {ratio:g}", size=size, ratio=seen.crop_ratio)),
            (tr("steps"), _steps_in_words(recipe, steps)),
            (tr("learning rate"), schedules.in_words(recipe, steps)),
            (tr("drop path"), f"{a.drop_paths()[1]:g}"),
            (tr("memory"), memory),
            (tr("engine"), _engine_in_words(recipe.run)),
        ]
        if recipe.distill.loss != "none":
            said = tr(
                "{teacher} ({loss}, weight {weight:g})",
                teacher=recipe.distill.teacher or recipe.distill.cache,
                loss=recipe.distill.loss,
                weight=recipe.distill.alpha,
            )
            if self.projected:
                said += tr(
                    ", {outputs:,} {space} through a projection that is dropped at the end",
                    outputs=self.projected,
                    space=recipe.distill.space,
                )
            rows.append((tr("teacher"), said))
            if changing := schedules.distillation_in_words(recipe):
                rows.append((tr("distillation"), changing))
        rows += [(tr("note"), translated(note)) for note in self.notes]
        return [*self.found, *(line(label, text) for label, text in rows)]

    def _validation_in_words(self) -> str:
        if self.validation is None:
            return tr("none")
        return _source_in_words(self.validation, self.recipe.data.validation or tr("held out"))


def line(label: str, text: str) -> str:
    """A line of a plan: what it is about in a column of its own."""
    return padded(label, 17) + text


def _engine_in_words(run: RunRecipe) -> str:
    said = f"{run.engine}, {run.precision}"
    chosen = run.choices or default_choices(run.engine)
    if chosen.compiled and run.operators == "fast" and run.precision == "float32":
        compiles = engine_package(run.engine).Engine.compiles(run.device)
        said += tr(", operators compiled here") if compiles else ""
    return said


def _source_in_words(source: Source, spec: str) -> str:
    return tr("{pictures:,} pictures ({data})", pictures=len(source), data=spec)


def _steps_in_words(recipe: Recipe, steps: int) -> str:
    optim = recipe.optim
    said = tr("{steps:,} an epoch of {batch} pictures", steps=steps, batch=optim.batch)
    if optim.accumulate > 1:
        said += tr(" in {parts} parts", parts=optim.accumulate)
    total = steps * optim.epochs
    return said + tr(", {total:,} in {epochs} epochs", total=total, epochs=optim.epochs)


def make(recipe: Recipe, *, initialise: bool = True, run: Path | None = None) -> Plan:
    """Open the data, settle the model and refuse what cannot work.

    Args:
        initialise: read ``init.weights``; False for a resumed run, whose weights are its own.
        run: folder of the run, where it was begun before: its split of the data is taken.

    Raises:
        XciteError: data that cannot be read, classes without pictures or unknown to the other part,
            a batch larger than the data, weights that do not fit or expect other pixels.
    """
    recipe, notes = initial.settle(recipe)
    recipe, more = settle_precision(recipe, run)
    notes += more
    data = open_data(recipe, RunFolder(run).split if run else None)
    train = data.train
    notes += data.notes
    if recipe.optim.min_lr > recipe.learning_rate() and recipe.optim.schedule != "constant":
        notes.append(
            f"optim.min_lr {recipe.optim.min_lr:g} is above the peak learning rate "
            f"{recipe.learning_rate():g}: the rate will rise to it"
        )
    _check_batch(recipe, data)
    architecture = find(
        recipe.model.name,
        num_classes=len(train.class_names),
        in_chans=recipe.preprocessing.channels,
        **recipe.model.overrides(),
    )
    _check_model(recipe, architecture)
    projected = teachers.projected(recipe, train.class_names)
    weights = None
    if recipe.init.weights and initialise:
        recipe, weights, more = initial.open_initial(recipe, architecture, list(train.class_names))
        weights = widen(weights, architecture, projected, recipe.run.seed)
        notes += more
    return Plan(
        recipe=recipe,
        train=train,
        validation=data.validation,
        architecture=architecture,
        weights=weights,
        found=data.found,
        notes=notes,
        split=data.split,
        projected=projected,
    )


def _check_batch(recipe: Recipe, data: RunData) -> None:
    train = data.train
    if recipe.optim.batch > len(train):
        held = (
            f", {len(data.validation)} more are held out" if data.split and data.validation else ""
        )
        raise XciteError(
            f"optim.batch {recipe.optim.batch} is larger than the data: data.train "
            f"{recipe.data.train} holds {len(train)} pictures{held}; set optim.batch to "
            f"{len(train)} or less"
        )


def _check_model(recipe: Recipe, architecture: Architecture) -> None:
    names = canonical.shapes(architecture)
    for prefix in recipe.init.frozen:
        if not any(name.startswith(prefix) for name in names):
            raise XciteError(
                f"{architecture.with_article} has no {prefix.rstrip('.')} to keep as it is; set "
                "init.freeze_patch_embed to false"
            )
    seen = recipe.preprocessing
    if recipe.optim.batch == 1 and architecture.grid(seen.height, seen.width) == (1, 1):
        raise XciteError(
            f"optim.batch 1 at {in_pixels(seen.size)} px leaves BatchNorm a single value a "
            f"channel, as this model's grid has cells of {architecture.stride} px; set "
            "optim.batch to 2 or more, or preprocessing.size higher"
        )


def estimated_memory(recipe: Recipe, architecture: Architecture) -> int:
    """Bytes of a training step, from shapes: weights, gradients, two moments, average, activations.

    Activations are counted as one float32 (or bfloat16) value for each channel of each layer output
    that the backward pass reads again; frameworks differ by some ten per cent either way.
    """
    arrays = 5 if recipe.optim.ema else 4
    state = 4 * arrays * parameter_count(architecture)
    seen, recompute = recipe.preprocessing, recipe.run.activation_checkpointing
    values = activations(architecture, seen.height, seen.width, recompute=recompute)
    width_bytes = 2 if recipe.run.precision == "bf16" else 4
    pictures = recipe.optim.batch // recipe.optim.accumulate
    return state + values * width_bytes * pictures
