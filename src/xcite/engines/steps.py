"""What both engines do alike in training: steps, gradients, and the state to go on from.

A step accumulates the gradients of a batch's parts, averages them over the processes, and updates
the weights if loss and gradient are finite; else it undoes what the forward passes have changed.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcite import canonical
from xcite.data.batch import Batch
from xcite.engines import training_state
from xcite.engines.base import BaseEngine
from xcite.engines.interface import StepResult
from xcite.engines.pixels import model_input
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.randomness import generator
from xcite.recipe_sections import DistillRecipe, OptimRecipe


@dataclass(frozen=True)
class Training:
    """What `start_training` adds to an engine.

    Attributes:
        optimizer: an `Optimizer` of the framework's optimizer.py.
        average: the `MovingAverage` of the same file, if the recipe asks for one.
        statistics: BatchNorm's running statistics, which a forward pass already changes.
        frozen: parts whose names start so are not trained.
    """

    optimizer: Any
    average: Any | None
    statistics: list[Any]
    distill: DistillRecipe
    preprocessing: Preprocessing
    frozen: tuple[str, ...]


class TrainingEngine(BaseEngine):
    """Adds training to `BaseEngine`; `Engine` says what each public method promises."""

    _training: Training | None = None

    def start_training(
        self,
        optim: OptimRecipe,
        distill: DistillRecipe,
        preprocessing: Preprocessing,
        *,
        frozen: Sequence[str] = (),
    ) -> None:
        """Create optimiser state and moving average; names starting with ``frozen`` stay.

        Modules below ``frozen`` are kept in evaluation mode, so BatchNorm's statistics stay too.
        """
        parameters = self._optimizers.named_parameters(self.model)
        trained = {n: p for n, p in parameters.items() if not n.startswith(tuple(frozen))}
        if not trained:
            raise XciteError(f"nothing is left to train with {', '.join(frozen)} frozen")
        for name, parameter in parameters.items():
            self._freeze(parameter, name not in trained)
        optimizer = self._optimizers.AdamW(trained, optim)
        average = self._averaged = None
        if optim.ema is not None:
            self._averaged = self._new_model(seed=None)
            average = self._optimizers.MovingAverage(self.model, self._averaged, optim.ema)
        state, shapes = self.model.state_dict(), canonical.shapes(self.architecture)
        names = [name for name in shapes if not canonical.is_parameter(name)]
        statistics = [state[self._canonical_state.state_name(name)] for name in names]
        self._training = Training(
            optimizer, average, statistics, distill, preprocessing, tuple(frozen)
        )

    def train_step(
        self,
        batches: Sequence[Batch],
        *,
        learning_rate: float,
        paths: Sequence[np.ndarray | None],
        teacher: Sequence[np.ndarray | None],
        distill: DistillRecipe | None = None,
    ) -> StepResult:
        """One optimiser step over the parts of a batch (gradient accumulation).

        A loss or a gradient that is not finite leaves everything as it was, and so does an
        interruption before the step itself.
        """
        training = self._started()
        optimizer = training.optimizer
        pictures = sum(len(batch.pictures) for batch in batches)
        before = [tensor.clone() for tensor in training.statistics]
        losses = []
        done = False
        self._train_mode()
        try:
            for batch, scales, answers in zip(batches, paths, teacher, strict=True):
                if batch.targets is None:
                    raise XciteError(
                        "a batch to train on needs targets; this one is for evaluation"
                    )
                images = model_input(batch, training.preprocessing)
                loss = self._loss(images, batch.targets, scales, answers, distill)
                part = loss * (len(batch.pictures) / pictures)
                part.backward()
                losses.append(part.detach())
            total = sum(losses)
            if self.world_size > 1:
                self._processes.average([total, *optimizer.gradients()])
            result = StepResult(total.item(), optimizer.gradient_norm())
            if math.isfinite(result.loss) and math.isfinite(result.gradient_norm):
                done = True
                optimizer.step(learning_rate, result.gradient_norm)
                if training.average is not None:
                    training.average.update()
            return result
        finally:
            optimizer.clear_gradients()
            if not done:  # the forward pass has already counted the batch
                for tensor, old in zip(training.statistics, before, strict=True):
                    self._assign(tensor, old)

    def gradients(
        self,
        images: np.ndarray,
        targets: np.ndarray,
        *,
        paths: np.ndarray | None = None,
        teacher: np.ndarray | None = None,
    ) -> tuple[float, dict[str, np.ndarray]]:
        optimizer = self._started().optimizer
        self._train_mode()
        try:
            with self._untouched_statistics(self.model):
                loss = self._loss(images, targets, paths, teacher)
                loss.backward()
            total = loss.detach()
            if self.world_size > 1:
                self._processes.average([total, *optimizer.gradients()])
            named = zip(optimizer.parameters, optimizer.gradients(), strict=True)
            to_canonical = self._canonical_state.to_canonical
            return total.item(), {name: to_canonical(name, tensor) for name, tensor in named}
        finally:
            optimizer.clear_gradients()

    def training_state(self) -> dict[str, np.ndarray]:
        training = self._started()
        sections = {"weights": self.read_weights(), **training.optimizer.state()}
        if training.average is not None:
            sections["ema"] = self.read_weights(ema=True)
        return training_state.pack(training.optimizer.steps, sections)

    def restore_training(self, state: Mapping[str, np.ndarray]) -> None:
        training = self._started()
        steps = training_state.steps(state)
        moments = training_state.optimizer_state(state, training.optimizer.state())
        average = training_state.section(state, "ema")
        if training.average is not None and not average:
            raise XciteError(
                "the checkpoint has no moving average; start a new run from its weights, or "
                "leave optim.ema empty"
            )
        self.load_weights(training_state.section(state, "weights"))
        if training.average is not None:
            self._canonical_state.load_weights(training.average.model, average)
        training.optimizer.restore(moments, steps)

    def _started(self) -> Training:
        if self._training is None:
            raise XciteError("the engine is not training: call start_training first")
        return self._training

    def _train_mode(self) -> None:
        training = self._started()
        self.model.train()
        for name, module in self._named_modules():
            if f"{name}.".startswith(training.frozen):
                module.eval()
        rates = (getattr(self.architecture, name, 0) for name in ("drop_rate", "attn_drop_rate"))
        if any(rates):  # a resumed run must drop the same
            draw = generator(self._seed, "dropout", training.optimizer.steps, self.rank)
            self._seed_dropout(int(draw.integers(2**31)))

    def _loss(
        self,
        images: np.ndarray,
        targets: np.ndarray,
        paths: np.ndarray | None,
        teacher: np.ndarray | None,
        distill: DistillRecipe | None = None,
    ) -> Any:
        blocks, rate = self.architecture.drop_paths()
        if paths is None and rate > 0:
            # None means that nothing is dropped; the model itself would draw.
            paths = np.ones((blocks, 3, len(images)), np.float32)
        scales = None if paths is None else self._tensor(paths)
        with self._autocast():
            logits = self._call(self._images(images), scales)
        answers = None if teacher is None else self._tensor(teacher)
        distill = distill or self._started().distill
        return self._losses.loss(logits, self._tensor(targets), answers, distill)

    # ---- what the frameworks do differently ------------------------------------------------

    @abstractmethod
    def _freeze(self, parameter: Any, frozen: bool) -> None:
        """Whether the parameter gets no gradient."""

    @abstractmethod
    def _named_modules(self) -> Any:
        """Pairs of (name, module) of the whole model."""

    @abstractmethod
    def _seed_dropout(self, seed: int) -> None:
        """Seed the framework's own random numbers."""

    @abstractmethod
    def _assign(self, tensor: Any, values: Any) -> None:
        """Overwrite a tensor in place."""
