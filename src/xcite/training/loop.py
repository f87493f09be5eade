"""The training loop, the only one: any engine, with or without a teacher, on one or many processes.

    recipe -> plan -> for each epoch: steps, then evaluation, then files

Everything random is a pure function of (seed, epoch, picture), and everything else is in the
checkpoint, so a run that was interrupted goes on as if nothing had happened.
"""

import contextlib
import functools
import time
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from xcite.data.pipeline import TrainLoader
from xcite.engines.interface import Engine
from xcite.errors import XciteError
from xcite.evaluation.accuracy import Accuracy
from xcite.evaluation.evaluate import validation_line
from xcite.language import noted
from xcite.processes import environment
from xcite.processes.lost import ProcessLost, lost
from xcite.recipe import Recipe
from xcite.training import checkpoint, lines, plan, tensorboard, validation
from xcite.training.computing import engine_for
from xcite.training.interruption import Stopped, StopRequest
from xcite.training.journal import Draw, Journal, Pace, StepLog
from xcite.training.ownership import refuse_owned
from xcite.training.run_folder import RunFolder, resume_command
from xcite.training.saving import Saver
from xcite.training.schedules import learning_rate
from xcite.training.session import Session
from xcite.training.steps import NotFinite, Steps
from xcite.training.teachers.build import build_teacher
from xcite.training.teachers.teacher import Teacher
from xcite.training.together import everywhere, together, watched
from xcite.training.views_log import ViewsLog

# An evaluation is saved before, if more work than this would be lost with it.
SECONDS_WORTH_SAVING = 20


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
    numbered: bool = False,
    allow_changes: bool = False,
    teacher: Teacher | None = None,
    checkpoint_file: Path | None = None,
    console: Console | None = None,
    draw: Draw | None = None,
) -> Outcome:
    """Train as the recipe says and leave a run folder behind.

    Args:
        run_folder: new or empty; with ``resume`` the folder of the run to go on with.
        numbered: append to ``run_folder`` the first number that is free.
        allow_changes: go on though recipe or data make the result another one.
        teacher: who answers; by default built from ``recipe.distill``.
        checkpoint_file: resume from this one instead of the folder's newest.
        console: where progress goes; standard output by default.
        draw: writes curves.png from the rows of metrics.jsonl (`xcite.figures.curves.draw_curves`).

    Raises:
        XciteError: anything the user can mend; nothing is written before all is checked, and later
            the last good state is saved on the way out.
    """
    path = Path(run_folder)
    if resume:
        refuse_owned(RunFolder.open(path).path)
    elif not numbered:
        RunFolder(path).refuse_used()
    if recipe.run.tensorboard:
        tensorboard.require()
    starts = not resume or not (checkpoint_file or checkpoint.candidates(RunFolder(path)))
    prepared = plan.make(recipe, initialise=starts, run=path if resume else None)
    console = console or Console()
    environment.set_timeout(recipe.run.process_timeout)
    place = environment.settle(recipe.run.engine)
    engine, recipe = engine_for(
        prepared.recipe, prepared.built, len(prepared.train), say=console.print
    )
    if recipe.run.record_views and numbered and engine.world_size > 1:
        raise XciteError("run.record_views with several processes needs --out, the run's folder")
    prepared = replace(prepared, recipe=recipe)
    if prepared.weights is not None:
        engine.load_weights(prepared.weights)
    if teacher is None:
        teacher = build_teacher(recipe, prepared.train, prepared.class_names)
    engine.start_training(
        recipe.optim, recipe.distill, recipe.preprocessing, frozen=recipe.init.frozen
    )
    writes = engine.rank == 0
    loader = TrainLoader(prepared.train, recipe, rank=engine.rank, world_size=engine.world_size)
    with StopRequest() as stop:
        if resume:
            begin = functools.partial(
                Session.go_on,
                steps=loader.steps_per_epoch,
                checkpoint_file=checkpoint_file,
                allow_changes=allow_changes,
            )
        else:
            begin = functools.partial(Session.begin, numbered=numbered)
        session = together(engine, lambda: begin(path, prepared, writes=writes))
        try:
            if session.state is not None:
                engine.restore_training(session.state)
                session.state = None
            together(engine, session.accept)
            journal = Journal(session.folder, console, draw, writes=writes)
            run = _Run(prepared, engine, teacher, loader, session, journal, stop)
            return run.go(place.meeting.rpartition(":")[0])
        finally:
            session.close()


class _Run:
    """One session of a run: where it stands, and all that take part in it."""

    def __init__(
        self,
        prepared: plan.Plan,
        engine: Engine,
        teacher: Teacher | None,
        loader: TrainLoader,
        session: Session,
        journal: Journal,
        stop: StopRequest,
    ) -> None:
        self.plan = prepared
        self.recipe = prepared.recipe
        self.engine = engine
        self.teacher = teacher
        self.loader = loader
        self.session = session
        self.position = session.position
        self.journal = journal
        self.saver = Saver(session, prepared, engine, teacher)
        self.stop = stop
        self.left_out: dict[str, dict[str, str]] = {"train": loader.skipped, "validation": {}}
        self.steps = loader.steps_per_epoch
        self.saved_at = time.monotonic()
        self.looked_at = time.monotonic()
        self.pace = Pace()
        self.asked = Steps(prepared, engine, teacher, loader)
        self.views = ViewsLog(session.folder.path, engine.rank)
        if session.on_disk:
            self.saver.saved = session.position

    def go(self, first_host: str = "") -> Outcome:
        """Train to the end, or until a stop is asked for.

        Args:
            first_host: address of process 0's machine, where there are several processes.

        Raises:
            XciteError: training cannot go on; the last good state is saved.
        """
        try:
            with watched(self.engine, self.recipe, self.session.folder, first_host) as watchdog:
                self.watchdog = watchdog
                with watchdog.busy():
                    self._begin()
                return self._go()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "stopped at once; the run stays as its last checkpoint left it; go on with: "
                + resume_command(self.session.folder.path)
            ) from None
        except Exception as error:
            raise self._failed(error) from error
        finally:
            with contextlib.suppress(XciteError):
                self.saver.wait()  # the folder is not given free while a thread writes to it
            self.loader.close()
            self.journal.close()

    def _begin(self) -> None:
        """Say what is going to happen, and save the state to begin with."""
        if not self.journal.writes:
            return
        folder, resumed = self.session.folder, self.session.resumed
        if resumed:
            folder.forget_after(self.position.done, self.position.epoch)
        folder.write_environment(self.engine.name, self.engine.choices)
        if self.recipe.run.tensorboard:
            self.journal.open_board()
        epoch, epochs = self.position.epoch + 1, self.recipe.optim.epochs
        if epoch <= epochs:
            self.journal.say(
                lines.begins(folder.path, self.engine.name, epoch, epochs, self.steps, resumed)
            )
        notes = [*self.session.notes, *self.plan.notes]
        notes += self.teacher.notes if self.teacher else []
        for line in [*self.plan.found, *map(noted, notes)]:
            self.journal.say(line)
        self.journal.tell("starting", **self._place())
        # What is newest must be what goes on: a kill between two renames, damage or a way back may
        # have left the state under another name, a change at another place.
        if not self.session.on_disk:
            self._save_checkpoint()

    def _go(self) -> Outcome:
        epochs, where = self.recipe.optim.epochs, self.session.folder.path
        if self.position.epoch >= epochs:
            self.journal.say(lines.is_complete(where, self.position.epoch))
        while self.position.epoch < epochs:
            with self.journal.progress() as progress:
                try:
                    self._train_epoch(progress)
                    accuracies = self._evaluate(progress)
                except Stopped:
                    accuracies = None
                except XciteError:
                    # A signal to the whole group has ended the loader's processes, too.
                    if self.stop.signal is None:
                        raise
                    accuracies = None
            if accuracies is None:
                return self._interrupted()
            self._finish_epoch(accuracies)
        with self.watchdog.busy():
            self.journal.draw()
            self.saver.wait()
        return self._outcome(finished=True)

    def _train_epoch(self, progress: Progress) -> None:
        """Train to the end of the epoch.

        Raises:
            Stopped: a stop was asked for before.
        """
        epoch, done = self.position.epoch, self.position.step
        log = StepLog(
            self.journal,
            self.recipe,
            progress,
            epoch=epoch,
            steps=self.steps,
            done=done,
            before=self.position.done - done,
            left=self._seconds_left,
        )
        if done >= self.steps:
            return  # only the evaluation is missing
        self.looked_at = time.monotonic()
        for step, parts in enumerate(self.asked.parts(epoch, done), done):
            self.asked.queue(epoch, step, parts)
            self.watchdog.progress()
            if not self.asked.look_after(self.position.done, last=step + 1 == self.steps):
                continue
            self._look(log)
            self.saver.check()
            if self.stop.anywhere(self.engine):
                raise Stopped
            minutes = self.recipe.run.checkpoint_minutes
            if minutes and time.monotonic() - self.saved_at > 60 * minutes:
                self._save_checkpoint()

    def _evaluate(self, progress: Progress) -> dict[str, Accuracy]:
        """The accuracies after the epoch, if they are due; its steps are saved before.

        Raises:
            Stopped: a stop was asked for before they were known.
        """
        epoch, began = self.position.epoch + 1, time.monotonic()
        if validation.is_due(self.plan, epoch):
            if began - self.saved_at > SECONDS_WORTH_SAVING:
                self._save_checkpoint()
            self.journal.tell("evaluating", **self._place())
        accuracies = validation.validate(
            self.plan,
            self.engine,
            epoch,
            progress,
            self.stop,
            self.left_out["validation"],
            after_batch=self.watchdog.progress,
        )
        if accuracies:
            self.pace.evaluation(time.monotonic() - began)
        return accuracies

    def _seconds_left(self) -> float | None:
        epochs = range(self.position.epoch + 1, self.recipe.optim.epochs + 1)
        return self.pace.left(
            (self.recipe.optim.epochs - self.position.epoch) * self.steps - self.position.step,
            sum(validation.is_due(self.plan, epoch) for epoch in epochs),
        )

    def _look(self, log: StepLog | None = None) -> None:
        """Count the steps that were asked for, once they are done.

        Raises:
            NotFinite: a loss or a gradient is not finite; the position is the one before it.
        """
        count, began = len(self.asked.queued), time.monotonic()
        for step in self.asked.look(self.position.epoch, self.position.step):
            result, batch = step.result, self.recipe.optim.batch
            seconds = step.seconds + (time.monotonic() - began) / count
            self.position = self.position.after(result.loss, seconds, batch)
            self.pace.step((time.monotonic() - self.looked_at) / count)
            if self.recipe.run.record_views:
                self.views.add(self.position.epoch + 1, self.position.step, step.views)
            if log is not None:
                log.add(self.position.step, result, step.rate, step.distill)
        self.looked_at = time.monotonic()

    def _finish_epoch(self, accuracies: dict[str, Accuracy]) -> None:
        """Say, record and save what the epoch gave."""
        epoch = self.position.epoch + 1
        self._tell_epoch(accuracies)
        leader = None
        if accuracies:
            leader = max(accuracies, key=lambda name: accuracies[name].top1)
            top1, top5 = accuracies[leader].top1, accuracies[leader].top5
            if self.position.best is None or top1 > self.position.best:
                self.position = replace(self.position, best=top1, best_top5=top5, best_epoch=epoch)
            else:
                leader = None
        self.position = self.position.next_epoch()
        due = epoch == self.recipe.optim.epochs or epoch % self.recipe.run.checkpoint_every == 0
        with self.watchdog.busy():
            self.saver.epoch(accuracies, self.position, leader=leader, due=due)
            if due:
                self.saved_at = time.monotonic()
            self.journal.draw_now_and_then()

    def _tell_epoch(self, accuracies: dict[str, Accuracy]) -> None:
        position, epoch = self.position, self.position.epoch + 1
        row = {
            "kind": "epoch",
            "epoch": epoch,
            "step": position.done,
            "loss": position.loss / self.steps,
            "lr": learning_rate(self.recipe, epoch * self.steps - 1, self.steps),
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
        sources = {"train": self.plan.train, "validation": self.plan.validation}
        left_out = {
            part: everywhere(self.engine, sources[part], skipped)
            for part, skipped in self.left_out.items()
        }
        row |= self.journal.tell_skipped(left_out, self.plan.pictures)
        self.journal.say(lines.epoch(row))
        self.journal.record(row)

    def _save_checkpoint(self) -> None:
        with self.watchdog.busy():
            self.saver.checkpoint(self.position)
        self.saved_at = time.monotonic()

    def _interrupted(self) -> Outcome:
        self._look()
        with self.watchdog.busy():
            self.saver.rescue(self.position)
        self.journal.folder = self.session.folder
        self.journal.skipped(self.left_out)
        self.journal.draw()
        self._close("stopped", signal=self.stop.signal)
        command = resume_command(self.session.folder.path)
        self.journal.say(lines.stopped(self.position, self.steps, command))
        return self._outcome(finished=False)

    def _failed(self, error: Exception) -> XciteError:
        """Save the last good state; the error to raise says how to go on."""
        told = error if isinstance(error, XciteError) else None
        if self.engine.world_size > 1:
            told = told or lost(error)
        what = str(told or f"{type(error).__name__}: {error}").strip().replace("\n", " ")
        if not self.journal.writes:
            return told or XciteError(what)
        try:
            if not self.asked.whole:
                raise XciteError("the step was interrupted while it changed the weights")
            with contextlib.suppress(NotFinite):
                self._look()
            self.saver.rescue(self.position)
            kept = f"saved {self._where()}"
        except Exception as second:
            kept = (
                "" if str(second) == what else f"the state in memory could not be saved: {second}; "
            )
            kept += "the last checkpoint stays"
        self.journal.folder = self.session.folder
        remedy, start = told.remedy if told else "", None
        # Weights with which not one step was possible are beyond help.
        if isinstance(error, NotFinite) and self.position.done == self.session.position.done > 0:
            start = checkpoint.before(self.position, self.session.folder)
        command = resume_command(start or self.session.folder.path, remedy)
        message = f"{what}; {kept}; go on with: {command}"
        with contextlib.suppress(XciteError, OSError):
            self.journal.write_rows()
            self.journal.skipped(self.left_out)
            self._close("failed", error=what, command=command)
            self.session.folder.write_log(message)
        kind = ProcessLost if isinstance(told, ProcessLost) else XciteError
        return kind(message, remedy=remedy)

    def _where(self) -> str:
        position = self.position
        return f"after step {position.step} of {self.steps} in epoch {position.epoch + 1}"

    def _place(self) -> dict[str, int]:
        """The position as `xcite status` shows it: a finished run stands at its last step."""
        epochs, position = self.recipe.optim.epochs, self.position
        done = position.epoch >= epochs
        return {
            "epoch": epochs if done else position.epoch + 1,
            "epochs": epochs,
            "step": self.steps if done else position.step,
            "steps": self.steps,
        }

    def _close(self, event: str, **more: object) -> None:
        """Record how the session ended."""
        if self.journal.writes:
            self.journal.tell(event, **self._place())
            self.session.history.add(event, self.position.done, **more)

    def _outcome(self, *, finished: bool) -> Outcome:
        folder, position = self.session.folder, self.position
        if finished:
            self._close("finished")
        if finished and position.best is not None:
            self.journal.say(lines.best(position, folder.best))
        return Outcome(folder.path, position.epoch, position.best, finished)
