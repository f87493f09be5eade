"""The weights and checkpoints that a run leaves behind, written while the run goes on."""

import contextlib
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xcite import recipe as recipes
from xcite.engines.interface import Engine
from xcite.engines.training_state import section
from xcite.evaluation.accuracy import Accuracy
from xcite.training import checkpoint
from xcite.training.checkpoint import Identity, Position
from xcite.training.plan import Plan
from xcite.training.projection import student_alone
from xcite.training.session import Session
from xcite.training.teachers.teacher import Teacher
from xcite.weights import Metadata, save_weights

Job = Callable[[], None]


class Writer:
    """Does jobs in a thread, one batch of them at a time; what one raises comes out later."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._left: list[Job] = []

    def start(self, jobs: list[Job]) -> None:
        """Begin with the jobs; those before must have been waited for."""
        self._thread = threading.Thread(target=self._work, args=(jobs,), name="xcite saving")
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether a job has raised something by now."""
        return self._error is not None

    def wait(self) -> None:
        """Wait until everything is written; raises what a job raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def postpone(self, jobs: list[Job]) -> None:
        """Add jobs to what a failure has left undone."""
        self._left += jobs

    def retry(self) -> None:
        """Do, in this thread, what a failure has left undone; raises what fails again."""
        self._do(self._left)

    def forget(self) -> None:
        """Let undone what a failure has left undone."""
        self._left = []

    def _work(self, jobs: list[Job]) -> None:
        try:
            self._do(jobs)
        except BaseException as error:
            self._error = error

    def _do(self, jobs: list[Job]) -> None:
        self._left = list(jobs)
        while self._left:
            self._left[0]()
            del self._left[0]


class Saver:
    """Writes what the engine holds; only process 0 writes.

    Every state is copied in one piece between two steps, and a thread writes the copy.
    """

    def __init__(
        self, session: Session, plan: Plan, engine: Engine, teacher: Teacher | None
    ) -> None:
        self.session = session
        self.plan = plan
        self.engine = engine
        self.teacher = teacher
        self._writer = Writer()
        self.saved: Position | None = None  # the last one whose writing has begun

    @property
    def writes(self) -> bool:
        return self.engine.rank == 0

    def check(self) -> None:
        """Raise XciteError if a save that was begun has failed."""
        if self._writer.failed:
            self.wait()

    def wait(self) -> None:
        """Wait until all is on disk; raises XciteError if it is not."""
        try:
            self._writer.wait()
        except BaseException:
            self.saved = None
            raise

    def checkpoint(self, position: Position) -> None:
        """Begin to write everything needed to go on from ``position``."""
        if self.writes:
            self.session.require_folder()
            self._start(position, self._checkpoint_jobs(self._state(), position))

    def epoch(
        self,
        accuracies: dict[str, Accuracy],
        position: Position,
        *,
        leader: str | None,
        due: bool,
    ) -> None:
        """Begin to write weights and checkpoint after an epoch; ``position`` follows it.

        Args:
            leader: "model" or "ema", whichever is the best so far; None if neither is.
            due: whether a checkpoint and the last weights are to be written.
        """
        if not self.writes or not (leader or due):
            return
        self.session.require_folder()
        state, epoch, folder = self._state(), position.epoch, self.session.folder
        write = partial(self._weights_job, state, accuracies, epoch)
        jobs = [write(folder.best, ema=leader == "ema")] if leader else []
        if due:
            jobs.append(write(folder.last, ema=False))
            if self.plan.recipe.optim.ema is not None:
                jobs.append(write(folder.last_ema, ema=True))
            jobs += self._checkpoint_jobs(state, position, number=epoch)
        self._start(position if due else self.saved, jobs)

    def rescue(self, position: Position) -> None:
        """Write the state in memory now, if it is not there yet, whatever happened before.

        What a failure has left undone comes first: a checkpoint never stands without the weights
        that belong to an earlier position.

        Raises:
            Exception: it cannot be written.
        """
        with contextlib.suppress(Exception):
            self.wait()
        if self.session.follow_folder():
            self._writer.forget()  # its names are those of the old place
        self.session.require_folder()  # one that was deleted is not made anew
        self._writer.retry()
        if self.saved != position:
            self.checkpoint(position)
            self.wait()

    def _start(self, position: Position | None, jobs: list[Job]) -> None:
        jobs = [self.session.require_folder, *jobs]
        try:
            self.wait()
        except BaseException:
            self._writer.postpone(jobs)  # or an epoch would count as done without its weights
            raise
        self._writer.start(jobs)
        self.saved = position

    def _state(self) -> dict[str, np.ndarray]:
        return self.engine.training_state()

    def _checkpoint_jobs(
        self, state: dict[str, np.ndarray], position: Position, number: int | None = None
    ) -> list[Job]:
        folder, keep = self.session.folder, self.plan.recipe.run.keep
        identity = Identity(self.session.history.run, recipes.digest(self.plan.recipe))
        metadata = self._metadata({"epoch": position.epoch})
        paths = [folder.coming]
        if number is not None and keep:
            paths.insert(0, folder.numbered(number))
        jobs: list[Job] = [
            partial(checkpoint.save, path, state, position, metadata, identity) for path in paths
        ]
        jobs.append(partial(checkpoint.publish, folder))
        jobs.append(partial(checkpoint.keep_numbered, folder, keep, position.epoch))
        return jobs

    def _weights_job(
        self,
        state: Mapping[str, np.ndarray],
        accuracies: dict[str, Accuracy],
        epoch: int,
        path: Path,
        *,
        ema: bool,
    ) -> Job:
        metrics: dict[str, float | int | bool] = {"epoch": epoch, "ema": ema}
        accuracy = accuracies.get("ema" if ema else "model")
        if accuracy is not None:
            metrics |= {"top1": accuracy.top1, "top5": accuracy.top5, "loss": accuracy.loss}
        weights = student_alone(section(state, "ema" if ema else "weights"), self.plan.student)
        return partial(save_weights, path, weights, self._metadata(metrics))

    def _metadata(self, metrics: dict[str, float | int | bool]) -> Metadata:
        """What travels with the weights."""
        recipe = self.plan.recipe
        provenance: dict[str, Any] = {"engine": self.engine.name, "seed": recipe.run.seed}
        if recipe.init.weights:
            provenance["initial_weights"] = recipe.init.weights
        altered = self.session.history.altered()
        if altered:
            provenance["changed on the way"] = "; ".join(altered)
        if self.teacher is not None:
            provenance["teacher"] = self.teacher.identity()
        return Metadata(
            variant=None if recipe.model.overrides() else recipe.model.name,
            architecture=self.plan.student.fields(),
            class_names=self.plan.class_names if recipe.data.labels else None,
            preprocessing=recipe.preprocessing,
            provenance=provenance,
            recipe_hash=recipes.digest(recipe),
            metrics=metrics,
        )
