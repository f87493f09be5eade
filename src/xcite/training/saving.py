"""The weights and checkpoints that a run leaves behind."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xcite import recipe as recipes
from xcite.engines.interface import Engine
from xcite.evaluation.accuracy import Accuracy
from xcite.training import checkpoint
from xcite.training.checkpoint import Position
from xcite.training.plan import Plan
from xcite.training.run_folder import RunFolder
from xcite.training.teachers.teacher import Teacher
from xcite.weights import Metadata, save_weights


@dataclass(frozen=True)
class Saver:
    """Writes what the engine holds; only process 0 writes."""

    folder: RunFolder
    plan: Plan
    engine: Engine
    teacher: Teacher | None

    @property
    def writes(self) -> bool:
        return self.engine.rank == 0

    def checkpoint(self, position: Position) -> None:
        """Everything needed to go on from ``position``."""
        state = self.engine.training_state()
        if self.writes:
            metadata = self._metadata({"epoch": position.epoch})
            checkpoint.save(self.folder.checkpoint, state, position, metadata)

    def best(self, accuracies: dict[str, Accuracy], epoch: int, leader: str) -> None:
        """The better one of model and moving average after ``epoch``, counted from 1."""
        self._weights(self.folder.best, accuracies, epoch, ema=leader == "ema")

    def last(self, accuracies: dict[str, Accuracy], epoch: int, position: Position) -> None:
        """Weights and checkpoint after ``epoch``, counted from 1; ``position`` follows it."""
        self._weights(self.folder.last, accuracies, epoch, ema=False)
        if self.plan.recipe.optim.ema is not None:
            self._weights(self.folder.last_ema, accuracies, epoch, ema=True)
        self.checkpoint(position)
        if self.writes:
            checkpoint.keep_numbered(self.folder, epoch, self.plan.recipe.run.keep)

    def _weights(
        self, path: Path, accuracies: dict[str, Accuracy], epoch: int, *, ema: bool
    ) -> None:
        if not self.writes:
            return
        metrics: dict[str, float | int | bool] = {"epoch": epoch, "ema": ema}
        accuracy = accuracies.get("ema" if ema else "model")
        if accuracy is not None:
            metrics |= {"top1": accuracy.top1, "top5": accuracy.top5, "loss": accuracy.loss}
        save_weights(path, self.engine.read_weights(ema=ema), self._metadata(metrics))

    def _metadata(self, metrics: dict[str, float | int | bool]) -> Metadata:
        """What travels with the weights."""
        recipe = self.plan.recipe
        provenance: dict[str, Any] = {"engine": self.engine.name, "seed": recipe.run.seed}
        if recipe.init.weights:
            provenance["initial_weights"] = recipe.init.weights
        if self.teacher is not None:
            provenance["teacher"] = self.teacher.identity()
        return Metadata(
            variant=None if recipe.model.overrides() else recipe.model.name,
            architecture=asdict(self.plan.architecture),
            class_names=self.plan.class_names,
            preprocessing=recipe.preprocessing,
            provenance=provenance,
            recipe_hash=recipes.digest(recipe),
            metrics=metrics,
        )
