"""How a run begins and how it goes on: whose folder, from which checkpoint, with which changes."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from xcite import recipe as recipes
from xcite.data.shared_memory import remove_segments_of_the_dead
from xcite.errors import XciteError
from xcite.training import changes, checkpoint, pictures, views_log
from xcite.training.checkpoint import UNKNOWN, Checkpoint, Position
from xcite.training.history import History
from xcite.training.ownership import Ownership, remove_leftovers
from xcite.training.pictures import FACTS, Survey, differing_facts, survey
from xcite.training.plan import Plan
from xcite.training.run_folder import RunFolder
from xcite.whole_files import write_text


class Session:
    """One process's turn at a run.

    Attributes:
        folder: where the run is; follows a folder that is moved.
        history: of the run.
        state: the training state to go on from; None begins from the initial weights.
        position: where the run stands.
        resumed: whether it was begun before.
        on_disk: whether the newest checkpoint holds this state, and no later one is there.
        notes: what a person should know about how it goes on.
    """

    def __init__(self, folder: RunFolder, prepared: Plan, owned: Ownership | None) -> None:
        self.folder = folder
        self.plan = prepared
        self.owned = owned
        with self._owned_on_success():
            self.history = History(folder.history)
        self.state: dict[str, np.ndarray] | None = None
        self.position = Position()
        self.resumed = False
        self.on_disk = False
        self.notes: list[str] = []
        self._survey: Survey | None = None
        self._changed: changes.Changes = {}
        self._altered = {"recipe": "", "data": ""}
        self._found: Checkpoint | None = None
        self._problems: dict[Path, str] = {}

    @classmethod
    def begin(cls, path: Path, prepared: Plan, *, numbered: bool, writes: bool) -> "Session":
        """A new run in a folder of its own; see `RunFolder.create`."""
        if not writes:
            return cls(RunFolder(path), prepared, None)
        remove_segments_of_the_dead()
        folder, owned = RunFolder.create(path, prepared.recipe, numbered=numbered)
        session = cls(folder, prepared, owned)
        with session._owned_on_success():
            if prepared.split:
                prepared.split.write(folder.split)
            found = survey(prepared.train)
            pictures.write(folder.pictures, prepared.train, found.sizes)
            session.history.begin(prepared.recipe, found.facts)
        session.position = Position(fingerprint=found.facts["listing"])
        return session

    @classmethod
    def go_on(
        cls,
        path: Path,
        prepared: Plan,
        *,
        steps: int,
        checkpoint_file: Path | None,
        allow_changes: bool,
        writes: bool,
    ) -> "Session":
        """A run that was begun before; `accept` makes what was changed its own.

        Args:
            steps: of an epoch.
            checkpoint_file: instead of the newest that is whole.
            allow_changes: go on though recipe or data make the result another one.

        Raises:
            XciteError: another process trains there, no checkpoint is whole, or checkpoint, recipe
                and data do not belong together.
        """
        folder = RunFolder.open(path)
        session = cls(folder, prepared, Ownership.take(folder.path) if writes else None)
        with session._owned_on_success():
            session._compare(steps, checkpoint_file, allow_changes)
        return session

    @contextlib.contextmanager
    def _owned_on_success(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _compare(self, steps: int, file: Path | None, allow_changes: bool) -> None:
        """Find the state to go on from, and refuse what does not belong to it."""
        self.resumed = True
        folder, recipe = self.folder, self.plan.recipe
        if file:
            self._found = checkpoint.load(file)
        else:
            self._found, self._problems = checkpoint.newest(folder)
        known = self.history.recipe() or recipes.load(str(folder.recipe))
        self._changed = changes.changes(known, recipe)
        changes.check(self._changed, allowed=allow_changes)
        wrote = self._found and self.history.recipe(self._found.identity.recipe)
        then = wrote or known  # the recipe of the state to go on from
        altered = changes.loud(changes.changes(then, recipe))
        self._altered["recipe"] = changes.in_words(altered)
        self._survey = survey(self.plan.train)
        if self._found is not None:
            found = self._found
            self.notes += [
                f"{problem}; {found.path.name} is used instead"
                for problem in self._problems.values()
            ]
            self._check_classes(found)
            self._check_checkpoint(found, steps, then.optim.batch, allow_changes)
            self.state = found.state
            self.position = self._refitted(found, steps, then.optim.batch)
            self.on_disk = self.position == found.position and found.path == folder.checkpoint
        self._check_data(self._survey.facts, allow_changes)
        self.position = replace(self.position, fingerprint=self._survey.facts["listing"])

    def accept(self) -> None:
        """Record how the run goes on, and that changed recipe and data are now its own."""
        if not self.owned or not self.resumed or self._survey is None:
            return
        folder, recipe, facts = self.folder, self.plan.recipe, self._survey.facts
        remove_leftovers(folder.path)
        remove_segments_of_the_dead()
        views_log.forget_after(folder.path, self.position.epoch + 1, self.position.step)
        if self.plan.split and not folder.split.is_file():  # killed before it was written
            self.plan.split.write(folder.split)
        for path in self._problems:  # or it would soon take the place of a good one
            path.replace(path.with_name(f"{path.name}.damaged"))
        step = self.position.done
        if self._changed:
            self.notes.append(f"changed from step {step} on: {changes.in_words(self._changed)}")
            write_text(folder.recipe, recipes.dump(recipe))
        if not self.history.run:
            run = self._found.identity.run if self._found else ""
            self.history.begin(recipe, facts, step, run)
        if facts != self.history.facts or not folder.pictures.is_file():
            pictures.write(folder.pictures, self.plan.train, self._survey.sizes)
        if self.on_disk:  # a kill right after a save may have left one too many
            checkpoint.keep_numbered(folder, recipe.run.keep, self.position.epoch)
        self.history.accept(
            recipe,
            facts,
            step,
            checkpoint=self._found.path.name if self._found else None,
            changes=self._changed,
            altered_recipe=self._altered["recipe"],
            altered_data=self._altered["data"],
            notes=self.notes,
        )

    def _check_checkpoint(
        self, found: Checkpoint, steps: int, batch: int, allow_changes: bool
    ) -> None:
        identity, position, history = found.identity, found.position, self.history
        whose = ""
        if identity.run and history.run and identity.run != history.run:
            whose = f"belongs to another run ({identity.run[:8]}, this one is {history.run[:8]})"
        elif identity.recipe and history.recipes and identity.recipe not in history.recipes:
            whose = "was written with another recipe than this run ever had"
        if whose and not allow_changes:
            raise XciteError(
                f"{found.path} {whose}; put the right file there, or go on from it with "
                "--allow-changes",
                remedy="--allow-changes",
            )
        if whose:
            self._altered["data"] = f"{found.path.name} {whose}"
            self.notes.append(self._altered["data"])
        done = int(found.state.get("step", position.done))
        if position.done != UNKNOWN:
            wrong = done != position.done
        else:  # only with as many steps an epoch as then can it be told
            same = batch == self.plan.recipe.optim.batch and not allow_changes
            counted = position.epoch * steps + position.step
            wrong = same and (position.step > steps or done not in (counted, UNKNOWN))
        if wrong:
            raise XciteError(
                f"{found.path} stands at step {position.step} of epoch {position.epoch + 1} after "
                f"{done} optimiser steps, which cannot be with {steps} steps an epoch: it was "
                "written with other data or is damaged"
            )

    def _check_classes(self, found: Checkpoint) -> None:
        mine, theirs = self.plan.class_names, found.class_names
        if theirs is None or mine == theirs:
            return
        other = next(
            (
                f"{new!r} where it has {old!r}"
                for old, new in zip(theirs, mine, strict=False)
                if old != new
            ),
            f"{len(mine)} classes where it has {len(theirs)}",
        )
        raise XciteError(
            f"the classes are not those of {found.path}: {other}; set data.classes to a file of "
            "the same names in the same order, or start a new run with init.weights set to this one"
        )

    def _refitted(self, found: Checkpoint, steps: int, batch: int) -> Position:
        """The checkpoint's position, in steps of the recipe's batch and of the data's number."""
        old, now = found.position, self.plan.recipe.optim.batch
        if UNKNOWN in (old.pictures, old.done):  # a file of an older Xcite
            done = int(found.state.get("step", old.epoch * steps + old.step))
            old = replace(old, pictures=old.step * batch, done=done)
        new = old.refitted(steps, now)
        if new.step != old.step:
            self.notes.append(
                f"an epoch has now {steps} steps of {now} pictures: epoch {new.epoch + 1} goes on "
                f"after step {new.step}, and {old.pictures - new.pictures} of the "
                f"{old.pictures} pictures behind it are used again"
            )
        return new

    def _check_data(self, facts: dict[str, str], allow_changes: bool) -> None:
        before = self.history.facts
        if not before and self.state is not None:  # a run of an older Xcite
            before = {"listing": self.position.fingerprint}
        differing = differing_facts(before, facts)
        if differing:
            assert self._survey is not None
            train = self.plan.train
            which = pictures.difference(self.folder.pictures, train, self._survey.sizes)
            other = f"other {' and '.join(differing)}" + (f" ({which})" if which else "")
            if which and FACTS["listing"] in differing:  # then sizes and samples differ, too
                other = which
            what = (
                f"the training pictures of {self.plan.recipe.data.train} are not those that "
                f"{self.folder.path} began with: {other}"
            )
            if not allow_changes:
                raise XciteError(
                    f"{what}; give the same files, or go on with these with --allow-changes",
                    remedy="--allow-changes",
                )
            told = f"training pictures: {other}"
            self._altered["data"] = "; ".join(filter(None, (self._altered["data"], told)))
            self.notes.append(what)
        elif before.get("times", facts["times"]) != facts["times"]:
            self.notes.append(
                "the files of the training pictures have other times than before; their names, "
                "sizes and sampled contents are the same"
            )

    def require_folder(self) -> None:
        """Raise XciteError if the run folder is no longer the one that was taken."""
        if self.owned is None or self.owned.owns(self.folder.path):
            return
        place = self.owned.place()
        raise XciteError(
            f"the run folder {self.folder.path} was "
            + (f"moved to {place}" if place else "deleted")
            + " while the run was writing to it"
        )

    def follow_folder(self) -> bool:
        """Write where the folder has been moved to from now on; whether it has been moved."""
        if self.owned is None or self.owned.owns(self.folder.path):
            return False
        place = self.owned.place()
        if place is not None:
            self.folder = RunFolder(place)
        return place is not None

    def close(self) -> None:
        """Give the folder free."""
        if self.owned:
            self.owned.release()
