"""The steps of a run: what each is made of, asked for ahead, and looked at when it is done.

A device that computes beside the processor is never waited for but where somebody looks: it gets
the next step's bytes and orders meanwhile. On a CPU a step is done when it was asked for, and is
looked at right away.
"""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from xcite.data.batch import split
from xcite.data.pipeline import TrainLoader
from xcite.engines.interface import Engine, StepResult
from xcite.engines.staging import Staged
from xcite.errors import XciteError
from xcite.randomness import drop_path_scales
from xcite.recipe_sections import DistillRecipe
from xcite.training.plan import Plan
from xcite.training.schedules import distillation, learning_rate
from xcite.training.teachers.teacher import Teacher

T = TypeVar("T")


class NotFinite(XciteError):
    """A loss or a gradient that is no finite number."""


@dataclass(frozen=True)
class Step:
    """A step that is done or will be.

    Attributes:
        rate: its learning rate.
        distill: its loss.
        views: of this process's pictures, see `xcite.data.batch.Batch`.
        seconds: that it took to ask for it.
    """

    result: StepResult
    rate: float
    distill: DistillRecipe
    views: np.ndarray
    seconds: float


class Steps:
    """The steps of a run, as its recipe orders them.

    Attributes:
        queued: steps that nobody has looked at.
        whole: False while the engine is being asked for one: it may have changed some weights.
    """

    def __init__(
        self, prepared: Plan, engine: Engine, teacher: Teacher | None, loader: TrainLoader
    ) -> None:
        self._plan = prepared
        self._engine = engine
        self._teacher = teacher
        self._loader = loader
        self.queued: list[Step] = []
        self.whole = True

    def parts(self, epoch: int, start: int) -> Iterator[list[Staged]]:
        """The parts of each step's batch, from step ``start`` of an epoch on."""
        shown = self._teacher.data_epoch(epoch) if self._teacher else epoch
        accumulate, stage = self._plan.recipe.optim.accumulate, self._engine.stage
        staged = (
            [stage(part) for part in split(batch, accumulate)]
            for batch in self._loader.epoch(shown, start_step=start)
        )
        # The bytes of the next step travel while the device computes this one.
        return one_ahead(staged) if self._engine.asynchronous else staged

    def queue(self, epoch: int, step: int, parts: Sequence[Staged]) -> None:
        """Ask for a step of an epoch, both counted from 0."""
        recipe, steps, before = self._plan.recipe, self._loader.steps_per_epoch, time.monotonic()
        number = epoch * steps + step
        rate = learning_rate(recipe, number, steps)
        distill = distillation(recipe, number, steps)
        blocks, drop = self._plan.architecture.drop_paths()
        paths = [
            drop_path_scales(recipe.run.seed, epoch, part.batch.views, blocks, drop)
            for part in parts
        ]
        teacher = self._teacher
        answers = [teacher.answers(part.batch, part) if teacher else None for part in parts]
        self.whole = False
        result = self._engine.train_step(
            parts, learning_rate=rate, paths=paths, teacher=answers, distill=distill
        )
        self.whole = True
        views = np.concatenate([part.batch.views for part in parts])
        self.queued.append(Step(result, rate, distill, views, time.monotonic() - before))

    def look_after(self, done: int, *, last: bool) -> bool:
        """Whether results are read now; every process of a run decides it alike.

        Args:
            done: optimiser steps of the run that were looked at.
            last: whether the epoch has no more steps.
        """
        due = (done + len(self.queued)) % self._plan.recipe.run.log_every == 0
        return due or last or not self._engine.asynchronous

    def look(self, epoch: int, done: int) -> Iterator[Step]:
        """The queued steps, as soon as each is done.

        Args:
            epoch: counted from 0.
            done: steps of it that were looked at.

        Raises:
            NotFinite: a step is not finite; it has changed nothing, nor have those behind it.
        """
        recipe, steps = self._plan.recipe, self._loader.steps_per_epoch
        queued, self.queued = self.queued, []
        for number, step in enumerate(queued, done + 1):
            result = step.result
            if not result.finite:
                raise NotFinite(
                    f"the loss is {result.loss}, the gradient's norm {result.gradient_norm}, in "
                    f"epoch {epoch + 1}, step {number} of {steps} (learning rate {step.rate:.3g}); "
                    "lower optim.lr, set optim.clip or set run.precision to float32",
                    remedy=f"--set optim.lr={recipe.optim.lr / 2:g} --allow-changes",
                )
            yield step


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, each given when the next one has been made."""
    iterator = iter(items)
    held = list(itertools.islice(iterator, 1))
    for item in iterator:
        yield held.pop()
        held.append(item)
    yield from held
