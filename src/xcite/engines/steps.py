"""What both engines do alike in training: steps, gradients, and the state to go on from.

A step accumulates the gradients of a batch's parts, which the framework averages over the processes
while it computes them, and updates the weights if loss and gradient are finite; else it undoes what
the forward passes have changed. On a device that computes beside the processor all of that is
queued, the decision too, and nobody waits.
"""

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from xcite import canonical
from xcite.data.batch import Batch
from xcite.data.transforms import require_channels
from xcite.engines import training_state
from xcite.engines.base import BaseEngine
from xcite.engines.interface import StepResult
from xcite.engines.pixels import model_input
from xcite.engines.staging import Staged
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
        normalisation: mean and std, float32 (C, 1, 1) on the device.
        frozen: parts whose names start so are not trained.
    """

    optimizer: Any
    average: Any | None
    statistics: list[Any]
    normalisation: tuple[Any, Any]
    distill: DistillRecipe
    preprocessing: Preprocessing
    frozen: tuple[str, ...]


class TrainingEngine(BaseEngine):
    """Adds training to `BaseEngine`; `Engine` says what each public method promises."""

    _training: Training | None = None
    _trained: Any  # what the forward pass of a step calls
    _pixels: ModuleType

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
        self._trained = self._call
        if self.world_size > 1:
            self._trained = self._processes.parallel(self._call)
        state, shapes = self.model.state_dict(), canonical.shapes(self.architecture)
        names = [name for name in shapes if not canonical.is_parameter(name)]
        statistics = [state[self._canonical_state.state_name(name)] for name in names]
        mean, std = (
            self.tensor(np.array(values, np.float32)[:, None, None])
            for values in (preprocessing.mean, preprocessing.std)
        )
        self._training = Training(
            optimizer, average, statistics, (mean, std), distill, preprocessing, tuple(frozen)
        )

    def stage(self, batch: Batch) -> Staged:
        preprocessing, targets = self._started().preprocessing, batch.targets
        if targets is None:
            raise XciteError("a batch to train on needs targets; this one is for evaluation")
        if self.asynchronous:
            return self._sent(batch, targets)
        return Staged(
            batch,
            images=lambda: self._images(model_input(batch, preprocessing)),
            targets=lambda: self.tensor(targets),
        )

    def _sent(self, batch: Batch, targets: np.ndarray) -> Staged:
        """The batch's bytes on their way; what follows the device does when they are there."""
        training, mixing = self._started(), batch.mixing
        require_channels(batch.pictures, training.preprocessing)
        erased = [(*box[:3], *box[3].shape[1:]) for box in batch.erased]
        noises = np.concatenate(
            [np.empty(0, np.float32), *(box[3].ravel() for box in batch.erased)]
        )
        arrays = [targets, batch.pictures, noises]
        arrays += [mixing.share, mixing.boxes] if mixing else []
        with self._ahead() as arrive:
            sent = [self.tensor(array) for array in arrays]
        there, pictures, noise, *mixed = sent

        @functools.cache
        def images() -> Any:
            arrive(sent[1:])
            return self._pixels.model_input(
                pictures, erased, noise, tuple(mixed) or None, *training.normalisation
            )

        @functools.cache
        def targets_there() -> Any:
            arrive([there])
            return there

        return Staged(batch, images, targets_there)

    def train_step(
        self,
        batches: Sequence[Batch | Staged],
        *,
        learning_rate: float,
        paths: Sequence[np.ndarray | None],
        teacher: Sequence[Any],
        distill: DistillRecipe | None = None,
    ) -> StepResult:
        """One optimiser step over the parts of a batch (gradient accumulation).

        A loss or a gradient that is not finite leaves everything as it was, and so does an
        interruption before the step itself.
        """
        training = self._started()
        optimizer = training.optimizer
        # The framework averages over the processes, which may have unequal numbers of pictures.
        staged = [part if isinstance(part, Staged) else self.stage(part) for part in batches]
        whole = staged[0].batch.whole or self.world_size * sum(map(len, staged))
        before = [tensor.clone() for tensor in training.statistics]
        losses = []
        done = False
        self._train_mode()
        try:
            for part, scales, answers in zip(staged, paths, teacher, strict=True):
                more = self.world_size > 1 and part is not staged[-1]
                images, targets = part.images, part.targets
                with self._processes.accumulating(self._trained) if more else nullcontext():
                    loss = self._loss(images, targets, scales, answers, distill)
                    share = loss * (len(part) * self.world_size / whole)
                    share.backward()
                losses.append(share.detach())
            total = sum(losses)
            if self.world_size > 1:
                apart = [] if self._sync_batch_norm else training.statistics
                self._processes.average(
                    [total, *(tensor for tensor in apart if tensor.is_floating_point())]
                )
            norm = optimizer.gradient_norm()
            result = StepResult(total, norm)
            if self.asynchronous:
                done = True
                self._queue_update(total, norm, learning_rate, before)
            elif result.finite:
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

    def _queue_update(self, loss: Any, norm: Any, learning_rate: float, before: list[Any]) -> None:
        """Update everything, or nothing if this step or one before was not finite.

        Args:
            before: `Training.statistics` as they were.
        """
        training = self._started()
        skip = training.optimizer.broken(loss, norm)
        self._optimizers.keep(before, training.statistics, skip)
        training.optimizer.step(learning_rate, norm, skip)
        if training.average is not None:
            training.average.update(skip)

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
                loss = self._loss(self._images(images), self.tensor(targets), paths, teacher)
                loss.backward()
            total = loss.detach()
            if self.world_size > 1:
                self._processes.average([total])
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
            draw = generator(self._seed, "dropout", training.optimizer.queued, self.rank)
            self._seed_dropout(int(draw.integers(2**31)))

    def _loss(
        self,
        images: Any,
        targets: Any,
        paths: np.ndarray | None,
        teacher: Any,
        distill: DistillRecipe | None = None,
    ) -> Any:
        blocks, rate = self.architecture.drop_paths()
        if paths is None and rate > 0:
            # None means that nothing is dropped; the model itself would draw.
            paths = np.ones((blocks, 3, len(images)), np.float32)
        scales = None if paths is None else self.tensor(paths)
        with self._autocast():
            logits = self._trained(images, scales)
        answers = self.tensor(teacher) if isinstance(teacher, np.ndarray) else teacher
        distill = distill or self._started().distill
        return self._losses.loss(logits, targets, answers, distill)

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
    def _ahead(self) -> AbstractContextManager[Callable[[list[Any]], None]]:
        """Tensors are sent to the device while it computes; yields what waits for them there."""

    @abstractmethod
    def _assign(self, tensor: Any, values: Any) -> None:
        """Overwrite a tensor in place."""
