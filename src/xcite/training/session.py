"""How a run begins and how it goes on: whose folder, from which checkpoint, with which changes."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from xcite import recipe as recipes
from xcite.data.shared_memory import remove_segments_of_the_dead
from xcite.errors import XciteError
from xcite.training import changes, checkpoint
from xcite.training.checkpoint import Checkpoint, Position
from xcite.training.history import History, differing_facts, facts_of
from xcite.training.ownership import Ownership, remove_leftovers
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
        notes: what a person should know about how it goes on.
    """

    def __init__(self, folder: RunFolder, owned: Ownership | None) -> None:
        self.folder = folder
        self.owned = owned
        with self._owned_on_success():
            self.history = History(folder.history)
        self.state: dict[str, np.ndarray] | None = None
        self.position = Position()
        self.resumed = False
        self.notes: list[str] = []

    @classmethod
    def begin(cls, path: Path, prepared: Plan, *, numbered: bool, writes: bool) -> "Session":
        """A new run in a folder of its own; see `RunFolder.create`."""
        if not writes:
            return cls(RunFolder(path), None)
        remove_segments_of_the_dead()
        session = cls(*RunFolder.create(path, prepared.recipe, numbered=numbered))
        with session._owned_on_success():
            if prepared.split:
                prepared.split.write(session.folder.split)
            facts = facts_of(prepared.train)
            session.history.begin(prepared.recipe, facts)
        session.position = Position(fingerprint=facts["listing"])
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
        """A run that was begun before.

        Args:
            steps: of an epoch.
            checkpoint_file: instead of the newest that is whole.
            allow_changes: go on though recipe or data make the result another one.

        Raises:
            XciteError: another process trains there, no checkpoint is whole, or checkpoint, recipe
                and data do not belong together.
        """
        folder = RunFolder.open(path)
        session = cls(folder, Ownership.take(folder.path) if writes else None)
        with session._owned_on_success():
            session._open(prepared, steps, checkpoint_file, allow_changes)
        return session

    @contextlib.contextmanager
    def _owned_on_success(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _open(self, prepared: Plan, steps: int, file: Path | None, allow_changes: bool) -> None:
        self.resumed = True
        if self.owned:
            remove_leftovers(self.folder.path)
            remove_segments_of_the_dead()
        found, problems = (checkpoint.load(file), {}) if file else checkpoint.newest(self.folder)
        if found is not None:
            self.notes += [f"{p}; {found.path.name} is used instead" for p in problems.values()]
        known = self.history.recipe() or recipes.load(str(self.folder.recipe))
        changed = changes.changes(known, prepared.recipe)
        changes.check(changed, allowed=allow_changes)
        if found is not None:
            self._check_checkpoint(found, steps, allow_changes)
            self.state, self.position = found.state, found.position
        if not self.owned:
            return
        facts = facts_of(prepared.train)
        self._check_data(prepared, facts, allow_changes)
        self.position = replace(self.position, fingerprint=facts["listing"])
        if prepared.split and not self.folder.split.is_file():  # killed before it was written
            prepared.split.write(self.folder.split)
        for path in problems:  # or it would soon take the place of a good one
            path.replace(path.with_name(f"{path.name}.damaged"))
        step = self.position.epoch * steps + self.position.step
        if changed:
            self.notes.append(f"changed from step {step} on: {changes.in_words(changed)}")
            write_text(self.folder.recipe, recipes.dump(prepared.recipe))
        if not self.history.run:
            run = found.identity.run if found else ""
            self.history.begin(prepared.recipe, facts, step, run)
        self.history.accept(
            prepared.recipe,
            facts,
            step,
            checkpoint=found.path.name if found else None,
            changes=changed,
            notes=self.notes,
        )

    def _check_checkpoint(self, found: Checkpoint, steps: int, allow_changes: bool) -> None:
        identity, position, history = found.identity, found.position, self.history
        whose = ""
        if identity.run and history.run and identity.run != history.run:
            whose = f"belongs to another run ({identity.run[:8]}, this one is {history.run[:8]})"
        elif identity.recipe and history.recipes and identity.recipe not in history.recipes:
            whose = "was written with another recipe than this run ever had"
        if whose and not allow_changes:
            raise XciteError(
                f"{found.path} {whose}; put the right file there, or go on from it with "
                "--allow-changes"
            )
        if whose:
            self.notes.append(f"{found.path.name} {whose}")
        done = found.state.get("step")
        if position.step > steps or (
            done is not None and int(done) != position.epoch * steps + position.step
        ):
            raise XciteError(
                f"{found.path} stands at step {position.step} of epoch {position.epoch + 1} after "
                f"{done} optimiser steps, which cannot be with {steps} steps an epoch: it was "
                "written with other data or is damaged"
            )

    def _check_data(self, prepared: Plan, facts: dict[str, str], allow_changes: bool) -> None:
        before = self.history.facts
        if not before and self.state is not None:  # a run of an older Xcite
            before = {"listing": self.position.fingerprint}
        differing = differing_facts(before, facts)
        what = (
            f"the training pictures of {prepared.recipe.data.train} are not those that "
            f"{self.folder.path} began with: other {' and '.join(differing)}"
        )
        if differing and not allow_changes:
            raise XciteError(
                f"{what}; give the same files, or go on with these with --allow-changes"
            )
        if differing:
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
