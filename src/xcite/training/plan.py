"""What a run will do, found out and checked before anything is trained or written."""

import functools
from dataclasses import dataclass, field

import numpy as np

from xcite.canonical import initial_weights, parameter_count
from xcite.cost import activations
from xcite.data.pipeline import TrainLoader
from xcite.data.sources import Source, open_source, read_class_names
from xcite.errors import XciteError
from xcite.families import Architecture
from xcite.preprocessing import Preprocessing
from xcite.recipe import Recipe
from xcite.runtime.classes import same_in_order
from xcite.training import schedules
from xcite.variants import find
from xcite.weights import open_weights


@dataclass(frozen=True)
class Plan:
    """A recipe together with the data it found.

    Attributes:
        train: the training pictures; their classes are the model's.
        validation: the pictures to evaluate on, with the same classes; None without them.
        architecture: the model to be built, its channels and classes settled.
        weights: canonical weights to start from; None draws them from the seed.
        notes: what a person should know though it is no error.
    """

    recipe: Recipe
    train: Source
    validation: Source | None
    architecture: Architecture
    weights: dict[str, np.ndarray] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def class_names(self) -> list[str]:
        return list(self.train.class_names)

    def lines(self) -> list[str]:
        """The plan in words, for `xcite train --dry-run`."""
        recipe, a = self.recipe, self.architecture
        steps = TrainLoader(self.train, recipe).steps_per_epoch
        validation = "none" if self.validation is None else f"{len(self.validation):,} pictures"
        classes = self.class_names
        shown = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
        total = steps * recipe.optim.epochs
        lines = [
            f"training data    {len(self.train):,} pictures ({recipe.data.train})",
            f"validation data  {validation}"
            + (f" ({recipe.data.validation})" if self.validation is not None else ""),
            f"classes          {len(classes)}: {shown}",
            f"model            {recipe.model.name}{a.in_words(recipe.preprocessing.size)}",
            f"parameters       {parameter_count(a):,}",
            f"input            {recipe.preprocessing.channels} x {recipe.preprocessing.size} x "
            f"{recipe.preprocessing.size}, crop ratio {recipe.preprocessing.crop_ratio:g}",
            f"steps            {steps:,} an epoch of {recipe.optim.batch} pictures"
            + (f" in {recipe.optim.accumulate} parts" if recipe.optim.accumulate > 1 else "")
            + f", {total:,} in {recipe.optim.epochs} epochs",
            f"learning rate    {schedules.in_words(recipe, steps)}",
            f"drop path        {a.drop_paths()[1]:g}",
            f"memory           about {estimated_memory(recipe, a) / 2**30:.1f} GiB for weights, "
            "optimiser and activations of a step, the framework itself not counted",
            f"engine           {recipe.run.engine}, {recipe.run.precision}",
        ]
        if recipe.distill.loss != "none":
            lines.append(
                f"teacher          {recipe.distill.teacher or recipe.distill.cache} "
                f"({recipe.distill.loss}, weight {recipe.distill.alpha:g})"
            )
        return lines + [f"note             {note}" for note in self.notes]


def make(recipe: Recipe, *, initialise: bool = True) -> Plan:
    """Open the data, settle the model and refuse what cannot work.

    Args:
        initialise: read ``init.weights``; False for a resumed run, whose weights are its own.

    Raises:
        XciteError: data that cannot be read, classes without pictures or unknown to the other part,
            a batch larger than the data, weights that do not fit or expect other pixels.
    """
    channels = recipe.preprocessing.channels
    names = read_class_names(recipe.data.classes) if recipe.data.classes else None
    listed = functools.partial(
        open_source,
        root=recipe.data.root,
        channels=channels,
        outside_root=recipe.data.outside_root,
        columns=recipe.data.columns,
    )
    train = listed(recipe.data.train, classes=names)
    notes = [*train.notes]
    if recipe.optim.min_lr > recipe.learning_rate() and recipe.optim.schedule != "constant":
        notes.append(
            f"optim.min_lr {recipe.optim.min_lr:g} is above the peak learning rate "
            f"{recipe.learning_rate():g}: the rate will rise to it"
        )
    _check_train(recipe, train)
    validation = None
    if recipe.data.validation:
        validation = listed(
            recipe.data.validation, classes=list(train.class_names), split="validation"
        )
        notes += validation.notes
        unseen = np.bincount(validation.labels, minlength=len(train.class_names)) == 0
        if unseen.any():
            absent = [n for n, missing in zip(train.class_names, unseen, strict=True) if missing]
            notes.append(f"no validation pictures of {', '.join(absent[:8])}")
    architecture = find(
        recipe.model.name,
        num_classes=len(train.class_names),
        in_chans=channels,
        **recipe.model.overrides(),
    )
    weights = None
    if recipe.init.weights and initialise:
        weights, more = _initial_weights(recipe, architecture, list(train.class_names))
        notes += more
    return Plan(recipe, train, validation, architecture, weights, notes)


def _check_train(recipe: Recipe, train: Source) -> None:
    where = f"data.train {recipe.data.train}"
    names = list(train.class_names)
    if len(names) < 2:
        raise XciteError(f"{where} has {len(names)} class; there must be at least two")
    missing = np.bincount(train.labels, minlength=len(names)) == 0
    if missing.any():
        without = [name for name, empty in zip(names, missing, strict=True) if empty]
        more = f" and {len(without) - 8} more" if len(without) > 8 else ""
        raise XciteError(f"{where} has no picture of {', '.join(without[:8])}{more}")
    if recipe.optim.batch > len(train):
        raise XciteError(
            f"optim.batch {recipe.optim.batch} is larger than the data: {where} holds "
            f"{len(train)} pictures"
        )


def _initial_weights(
    recipe: Recipe, architecture: Architecture, class_names: list[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    init = recipe.init
    assert init.weights is not None
    file = open_weights(
        init.weights,
        architecture=architecture,
        dialect=init.dialect,
        reset_head=init.reset_head,
        adapt_channels=init.adapt_channels,
    )
    notes = []
    contract = file.metadata.preprocessing
    if contract is None:
        notes.append(f"{init.weights} does not say which mean and std it was trained with")
    else:
        _check_contract(init.weights, contract, recipe.preprocessing)
        if contract.size != recipe.preprocessing.size:
            notes.append(
                f"{init.weights} was trained at {contract.size} px, this run is at "
                f"{recipe.preprocessing.size} px"
            )
    known = file.metadata.class_names
    if known is not None and not (init.reset_head or same_in_order(known, class_names)):
        raise XciteError(
            f"{init.weights} knows other classes ({', '.join(known[:8])}, ...) than the data "
            f"({', '.join(class_names[:8])}, ...); set init.reset_head=true for a new classifier"
        )
    tensors = dict(file.tensors)
    if file.missing:
        drawn = initial_weights(architecture, recipe.run.seed)
        tensors |= {name: drawn[name] for name in file.missing}
        notes.append(f"the classifier is drawn anew for {len(class_names)} classes")
    return tensors, notes


def _check_contract(weights: str, contract: Preprocessing, own: Preprocessing) -> None:
    for key in ("mean", "std"):
        theirs, ours = getattr(contract, key), getattr(own, key)
        if len(theirs) == len(ours) and not np.allclose(theirs, ours, atol=1e-6):
            raise XciteError(
                f"preprocessing.{key} is {list(ours)}, but {weights} was trained with "
                f"{list(theirs)}; set preprocessing.{key} to that"
            )


def estimated_memory(recipe: Recipe, architecture: Architecture) -> int:
    """Bytes of a training step, from shapes: weights, gradients, two moments, average, activations.

    Activations are counted as one float32 (or bfloat16) value for each channel of each layer output
    that the backward pass reads again; frameworks differ by some ten per cent either way.
    """
    arrays = 5 if recipe.optim.ema else 4
    state = 4 * arrays * parameter_count(architecture)
    size = recipe.preprocessing.size
    values = activations(architecture, size, size, recompute=recipe.run.activation_checkpointing)
    width_bytes = 2 if recipe.run.precision == "bf16" else 4
    pictures = recipe.optim.batch // recipe.optim.accumulate
    return state + values * width_bytes * pictures
