"""The training loop, the only one: any engine, with or without a teacher, on one or many processes.

    recipe -> plan -> for each epoch: steps, then evaluation, then files

Everything random is a pure function of (seed, epoch, picture), and everything else is in the
checkpoint, so a run that was interrupted goes on as if nothing had happened.
"""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from xcite.data.batch import Batch, split
from xcite.data.pipeline import TrainLoader
from xcite.engines import create_engine
from xcite.engines.interface import Engine, StepResult
from xcite.errors import XciteError
from xcite.evaluation.accuracy import Accuracy
from xcite.evaluation.evaluate import validation_line
from xcite.randomness import drop_path_scales
from xcite.recipe import Recipe
from xcite.training import checkpoint, plan, tensorboard
from xcite.training.checkpoint import Position
from xcite.training.interruption import Stopped, StopRequest
from xcite.training.journal import Draw, Journal, StepLog
from xcite.training.run_folder import RunFolder
from xcite.training.saving import Saver
from xcite.training.schedules import learning_rate
from xcite.training.teachers.build import build_teacher
from xcite.training.teachers.teacher import Teacher
from xcite.training.validation import validate


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        epochs: how many are complete.
        best: highest top-1 in per cent; None without validation.
        finished: False when it was interrupted and can be resumed.
    """

    folder: Path
    epochs: int
    best: float | None
    finished: bool


def train(
    recipe: Recipe,
    run_folder: str | Path,
    *,
    resume: bool = False,
    teacher: Teacher | None = None,
    checkpoint_file: Path | None = None,
    console: Console | None = None,
    draw: Draw | None = None,
) -> Outcome:
    """Train as the recipe says and leave a run folder behind.

    Args:
        run_folder: new or empty; with ``resume`` the folder of the run to go on with.
        teacher: who answers; by default built from ``recipe.distill``.
        checkpoint_file: resume from this one instead of the folder's last.
        console: where progress goes; standard output by default.
        draw: writes curves.png from the rows of metrics.jsonl (`xcite.figures.curves.draw_curves`).

    Raises:
        XciteError: anything the user can mend; nothing is written before all is checked.
    """
    console = console or Console()
    if resume:
        folder = RunFolder.open(run_folder)
        state, position = checkpoint.read(checkpoint_file or folder.checkpoint)
    else:
        folder, state, position = RunFolder(run_folder), None, Position()
        folder.refuse_used()
    if recipe.run.tensorboard:
        tensorboard.require()
    prepared = plan.make(recipe, initialise=not resume)
    fingerprint = prepared.train.fingerprint()
    if resume and position.fingerprint != fingerprint:
        raise XciteError(
            f"the training pictures of {recipe.data.train} are not those that {folder.path} began "
            "with; a resumed run needs the same files"
        )
    engine = create_engine(
        recipe.run.engine,
        prepared.architecture,
        seed=recipe.run.seed,
        precision=recipe.run.precision,
        operators=recipe.run.operators,
        attention=recipe.run.attention,
        activation_checkpointing=recipe.run.activation_checkpointing,
        compile=recipe.run.compile,
    )
    if prepared.weights is not None:
        engine.load_weights(prepared.weights)
    if teacher is None:
        teacher = build_teacher(
            recipe, prepared.train, prepared.class_names, processes=engine.world_size
        )
    engine.start_training(
        recipe.optim, recipe.distill, recipe.preprocessing, frozen=prepared.frozen
    )
    if state is not None:
        engine.restore_training(state)
    position = replace(position, fingerprint=fingerprint)
    journal = Journal(folder, console, draw, writes=engine.rank == 0)
    saver = Saver(folder, prepared, engine, teacher)
    with StopRequest() as stop:
        run = _Run(prepared, engine, teacher, position, journal, saver, stop)
        run.begin(folder, resume)
        return run.go()


class _Run:
    """One session of a run: where it stands, and all that take part in it."""

    def __init__(
        self,
        prepared: plan.Plan,
        engine: Engine,
        teacher: Teacher | None,
        position: Position,
        journal: Journal,
        saver: Saver,
        stop: StopRequest,
    ) -> None:
        self.plan = prepared
        self.recipe = prepared.recipe
        self.engine = engine
        self.teacher = teacher
        self.position = position
        self.journal = journal
        self.saver = saver
        self.stop = stop
        self.loader = TrainLoader(
            prepared.train, self.recipe, rank=engine.rank, world_size=engine.world_size
        )
        self.steps = self.loader.steps_per_epoch
        self.saved_at = time.monotonic()

    def begin(self, folder: RunFolder, resume: bool) -> None:
        """Open the run folder and say what is going to happen."""
        if not self.journal.writes:
            return
        if resume:
            folder.forget_after(self.position.epoch * self.steps + self.position.step)
        else:
            RunFolder.create(folder.path, self.recipe)
        folder.write_environment(self.engine.name)
        if self.recipe.run.tensorboard:
            self.journal.open_board()
        self.journal.say(
            f"{folder.path} {'resumed' if resume else 'begins'} on {self.engine.name}: epoch "
            f"{self.position.epoch + 1} of {self.recipe.optim.epochs}, {self.steps} steps each"
        )
        for note in [*self.plan.notes, *(self.teacher.notes if self.teacher else [])]:
            self.journal.say(f"note: {note}")

    def go(self) -> Outcome:
        """Train to the end, or until a stop is asked for."""
        epochs, where = self.recipe.optim.epochs, self.saver.folder.path
        if self.position.epoch >= epochs:
            self.journal.say(f"{where} is complete: {epochs} epochs are done")
        while self.position.epoch < epochs:
            with self.journal.progress() as progress:
                try:
                    self._train_epoch(progress)
                    accuracies = validate(
                        self.plan, self.engine, self.position.epoch + 1, progress, self.stop
                    )
                except Stopped:
                    accuracies = None
            if accuracies is None:
                return self._interrupted()
            self._finish_epoch(accuracies)
        self.journal.draw()
        return self._outcome(finished=True)

    def _train_epoch(self, progress: Progress) -> None:
        """Train to the end of the epoch.

        Raises:
            Stopped: a stop was asked for before.
        """
        epoch, done = self.position.epoch, self.position.step
        log = StepLog(self.journal, self.recipe, progress, epoch=epoch, steps=self.steps, done=done)
        if done >= self.steps:
            return  # only the evaluation is missing
        shown = self.teacher.data_epoch(epoch) if self.teacher else epoch
        for batch in self.loader.epoch(shown, start_step=done):
            before = time.monotonic()
            rate = learning_rate(self.recipe, epoch * self.steps + self.position.step, self.steps)
            result = self._step(batch, rate)
            self.position = self.position.after(result.loss, time.monotonic() - before)
            log.add(self.position.step, result, rate)
            if self.stop.anywhere(self.engine):
                raise Stopped
            minutes = self.recipe.run.checkpoint_minutes
            if minutes and time.monotonic() - self.saved_at > 60 * minutes:
                self._save_checkpoint()

    def _step(self, batch: Batch, rate: float) -> StepResult:
        """One optimiser step.

        Raises:
            XciteError: the loss or the gradient is not finite.
        """
        recipe, epoch = self.recipe, self.position.epoch
        blocks, drop = self.plan.architecture.drop_paths()
        parts = split(batch, recipe.optim.accumulate)
        result = self.engine.train_step(
            parts,
            learning_rate=rate,
            paths=[
                drop_path_scales(recipe.run.seed, epoch, part.views, blocks, drop) for part in parts
            ],
            teacher=[self.teacher.answers(part) if self.teacher else None for part in parts],
        )
        if not math.isfinite(result.loss + result.gradient_norm):
            raise XciteError(
                f"the loss is {result.loss}, the gradient's norm {result.gradient_norm}, "
                f"in epoch {epoch + 1}, step {self.position.step + 1} of {self.steps} "
                f"(learning rate {rate:.3g}); the weights before it are kept; "
                "lower optim.lr, set optim.clip or use float32"
            )
        return result

    def _finish_epoch(self, accuracies: dict[str, Accuracy]) -> None:
        """Say, record and save what the epoch gave."""
        epoch = self.position.epoch + 1
        self._tell_epoch(accuracies)
        if accuracies:
            leader = max(accuracies, key=lambda name: accuracies[name].top1)
            top1, top5 = accuracies[leader].top1, accuracies[leader].top5
            if self.position.best is None or top1 > self.position.best:
                self.position = replace(self.position, best=top1, best_top5=top5, best_epoch=epoch)
                self.saver.best(accuracies, epoch, leader)
        self.position = self.position.next_epoch()
        if epoch == self.recipe.optim.epochs or epoch % self.recipe.run.checkpoint_every == 0:
            self.saver.last(accuracies, epoch, self.position)
            self.saved_at = time.monotonic()
        self.journal.draw_now_and_then()

    def _tell_epoch(self, accuracies: dict[str, Accuracy]) -> None:
        position, epoch = self.position, self.position.epoch + 1
        number = epoch * self.steps
        row = {
            "kind": "epoch",
            "epoch": epoch,
            "step": number,
            "loss": position.loss / self.steps,
            "lr": learning_rate(self.recipe, number - 1, self.steps),
            "seconds": round(position.seconds, 3),
        }
        for name, accuracy in accuracies.items():
            prefix = "ema_" if name == "ema" else ""
            row |= {
                f"{prefix}acc1": accuracy.top1,
                f"{prefix}acc5": accuracy.top5,
                f"{prefix}val_loss": accuracy.loss,
            }
            self.journal.say(validation_line(epoch, accuracy, ema=name == "ema"))
        if self.loader.skipped:
            row["skipped"] = len(set(self.loader.skipped))
        self.journal.skipped(self.loader.skipped)
        self.journal.say(
            f"Epoch [{epoch}] loss {row['loss']:.4f}, lr {row['lr']:.3g}, "
            f"{position.seconds:.1f} s of training"
        )
        self.journal.record(row)

    def _save_checkpoint(self) -> None:
        self.saver.checkpoint(self.position)
        self.saved_at = time.monotonic()

    def _interrupted(self) -> Outcome:
        self._save_checkpoint()
        self.journal.skipped(self.loader.skipped)
        self.journal.draw()
        self.journal.say(
            f"stopped after step {self.position.step} of {self.steps} in epoch "
            f"{self.position.epoch + 1}; go on with: xcite train --resume {self.saver.folder.path}"
        )
        return self._outcome(finished=False)

    def _outcome(self, *, finished: bool) -> Outcome:
        self.journal.close()
        folder, position = self.saver.folder, self.position
        if finished and position.best is not None:
            self.journal.say(
                f"best: top-1 {position.best:.2f} %, top-5 {position.best_top5:.2f} % "
                f"after epoch {position.best_epoch}: {folder.best}"
            )
        return Outcome(folder.path, position.epoch, position.best, finished)
