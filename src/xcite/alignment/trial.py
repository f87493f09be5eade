"""What both sides of an alignment are given: weights, batches and everything random."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xcite import canonical
from xcite.data.batch import Batch
from xcite.data.pipeline import TrainLoader
from xcite.families import Architecture
from xcite.preprocessing import Preprocessing
from xcite.randomness import drop_path_scales, generator
from xcite.recipe import Recipe
from xcite.recipe_sections import DistillRecipe, OptimRecipe, RunRecipe
from xcite.training import plan
from xcite.training.projection import widen, widened
from xcite.variants import find
from xcite.weights import open_weights

PROJECTED = 8  # outputs of a teacher that is not there


@dataclass(frozen=True)
class Trial:
    """What both sides are given.

    Attributes:
        architecture: without dropout and drop path, whose draws are the framework's own.
        batches: one per step.
        paths: drop-path scales per batch.
        answers: of a made-up teacher per batch; None without distillation.
        run: its operators and form of attention, where a side does not name its own.
        frozen: prefixes of the names of weights that are not trained.
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
    run: RunRecipe
    frozen: tuple[str, ...] = ()

    @property
    def learning_rate(self) -> float:
        return self.optim.lr


def trial(
    recipe: Recipe, architecture: Architecture, weights: canonical.Weights, batches: Sequence[Batch]
) -> Trial:
    """The trial of a recipe's model, loss and optimiser on given batches."""
    blocks, rate = architecture.drop_paths()
    seed = recipe.run.seed
    answers: list[np.ndarray | None] = [None] * len(batches)
    question = recipe.distill.question
    if question is not None:
        # The loss is compared, not the teacher: any answers do, as long as both sides get them.
        outputs = architecture.num_classes
        if recipe.distill.space != "classes" and batches[0].targets is not None:
            outputs -= batches[0].targets.shape[1]  # those of the projection
        drawn = [
            generator(seed, "teacher", step).standard_normal(
                (len(batch.labels), outputs), np.float32
            )
            for step, batch in enumerate(batches)
        ]
        hard = question.answers == "classes"
        answers = [logits.argmax(1) if hard else 3 * logits for logits in drawn]
    return Trial(
        architecture.without_dropout(),  # left to itself a model would draw
        weights,
        list(batches),
        [drop_path_scales(seed, batch.epoch, batch.views, blocks, rate) for batch in batches],
        answers,
        recipe.preprocessing,
        recipe.optim,
        recipe.distill,
        recipe.run,
        recipe.init.frozen,
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
        recipe = prepared.recipe
        loader = TrainLoader(prepared.train, recipe)
        try:
            epochs = (loader.epoch(epoch) for epoch in itertools.count())
            batches = list(itertools.islice(itertools.chain.from_iterable(epochs), steps))
        finally:
            loader.close()
        architecture, weights = prepared.built, prepared.weights
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
        if recipe.distill.space != "classes":
            if weights is not None:
                weights = widen(weights, architecture, PROJECTED, recipe.run.seed)
            architecture = widened(architecture, PROJECTED)
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
    seen, batch = recipe.preprocessing, recipe.optim.batch
    shape = (batch, seen.height, seen.width, seen.channels)
    smoothing = np.float32(recipe.augment.smoothing)
    batches = []
    for step in range(count):
        random = generator(recipe.run.seed, "alignment", step)
        labels = random.integers(0, classes, batch)
        targets = np.full((batch, classes), smoothing / classes, np.float32)
        targets[np.arange(batch), labels] += 1 - smoothing
        views = np.stack([step * batch + np.arange(batch), np.zeros(batch, np.int64)], axis=1)
        pictures = random.integers(0, 256, shape, np.uint8)
        batches.append(Batch(pictures, labels, views, targets))
    return batches
