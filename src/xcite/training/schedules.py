"""What changes from step to step, as pure functions of the step; nothing here keeps state.

Of the learning rate: ``t`` below is the time in epochs, step / steps_per_epoch, ``w`` the length of
the warm-up and ``E`` of the run. Values are those used *in* a step, and agree with what the public
codes really did: timm 0.4.9 as driven by the official main.py, and PASSL v1.1 on paddle.
"""

import math

from xcite.language import tr
from xcite.recipe import Recipe
from xcite.recipe_sections import DistillRecipe


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The learning rate of optimiser step ``step``, counted from 0 over the whole run.

    Args:
        recipe: its ``optim`` section decides; the peak is `Recipe.learning_rate()`.
        steps_per_epoch: optimiser steps in an epoch.
    """
    optim = recipe.optim
    peak, warmup, epochs = recipe.learning_rate(), optim.warmup_epochs, optim.epochs
    t = step / steps_per_epoch
    if optim.schedule == "official":
        # main.py calls lr_scheduler.step(epoch) after the epoch, so epoch e runs on value e - 1,
        # and the cosine is a function of the epoch itself: it has gone on under the warm-up.
        t = float(max(step // steps_per_epoch - 1, 0))
    if t < warmup:
        return optim.warmup_lr + (peak - optim.warmup_lr) * t / warmup
    if optim.schedule == "constant":
        return peak
    progress = {
        "cosine": (t - warmup) / max(epochs - warmup, 1e-12),
        "cosine-after-warmup": (t - warmup) / epochs,
        "official": t / epochs,
    }[optim.schedule]
    return optim.min_lr + (peak - optim.min_lr) * (1 + math.cos(math.pi * progress)) / 2


def in_words(recipe: Recipe, steps_per_epoch: int) -> str:
    """The learning-rate curve as a sentence, for people who plan a run."""
    optim = recipe.optim
    last = learning_rate(recipe, optim.epochs * steps_per_epoch - 1, steps_per_epoch)
    late = optim.schedule == "official"
    every = tr("per epoch, one epoch late") if late else tr("per step")
    warming = ""
    if optim.warmup_epochs:
        warming = tr(
            "from {first:.3g} linearly over {epochs:g} epochs to ",
            first=optim.warmup_lr,
            epochs=optim.warmup_epochs,
        )
    peak = f"{recipe.learning_rate():.3g}"
    if optim.lr_per:
        peak += f" ({optim.lr:g} x {optim.batch}/{optim.lr_per})"
    after = tr("then constant")
    if optim.schedule != "constant":
        after = tr(
            "then a cosine down to {last:.3g} in the last step of epoch {epoch}",
            last=last,
            epoch=optim.epochs,
        )
    return tr("{rise}, {after}; set {every}", rise=warming + peak, after=after, every=every)


def distillation(recipe: Recipe, step: int, steps_per_epoch: int) -> DistillRecipe:
    """The ``distill`` section with alpha and tau of optimiser step ``step``, counted from 0.

    The first step has the first values, the last step of the run the last ones. A section in which
    nothing changes is returned as it is.
    """
    distill = recipe.distill
    if not distill.changing:
        return distill
    last = recipe.optim.epochs * steps_per_epoch - 1
    share = step / last if last else 0.0
    if distill.schedule == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    # Both ends are exact so; a + share * (b - a) may miss b by a rounding.
    values = {name: (1 - share) * a + share * b for name, (a, b) in distill.changing.items()}
    return distill.model_copy(update=values)


def distillation_in_words(recipe: Recipe) -> str:
    """How the loss of distillation changes, as a sentence; empty where it does not."""
    changing, said = recipe.distill.changing, []
    for name, (first, last) in changing.items():
        said.append(tr("{name} from {first:g} to {last:g}", name=name, first=first, last=last))
    if not said:
        return ""
    linear = recipe.distill.schedule == "linear"
    how = tr("linearly over all steps") if linear else tr("by a cosine over all steps")
    return tr("{changes}, {how}", changes=tr(", ").join(said), how=how)
