"""The PaddlePaddle engine; `xcite.engines.interface.Engine` says what each method promises."""

import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from xcite import canonical
from xcite.data.batch import Batch
from xcite.engines import training_state
from xcite.engines.allocation import keep_freed_memory
from xcite.engines.interface import AttentionMaps, StepResult
from xcite.engines.paddle import canonical_state, processes
from xcite.engines.paddle.build import build
from xcite.engines.paddle.losses import loss
from xcite.engines.paddle.optimizer import AdamW, MovingAverage, named_parameters
from xcite.engines.paddle.xcit import untouched_statistics
from xcite.engines.pixels import model_input
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.randomness import generator
from xcite.recipe import DistillRecipe, OptimRecipe
from xcite.variants import Architecture, XCiTArchitecture
from xcite.whole_files import whole_file


class Engine:
    """One model on PaddlePaddle, with what is needed to train and to use it."""

    name = "paddle"

    def __init__(
        self,
        architecture: Architecture,
        *,
        seed: int = 0,
        precision: str = "float32",
        operators: str = "fast",
        attention: str = "auto",
        activation_checkpointing: bool = False,
        compile: bool = False,
        threads: int | None = None,
    ) -> None:
        """Build the model with `xcite.canonical.initial_weights(architecture, seed)`.

        Raises:
            XciteError: unknown precision, bf16 on a CPU, or ``compile``, which is PyTorch's.
        """
        if precision not in ("float32", "bf16"):
            raise XciteError(f"unknown precision {precision!r}; choose float32 or bf16")
        keep_freed_memory()
        self.architecture = architecture
        self.rank, self.world_size = processes.start()
        cores = len(os.sched_getaffinity(0)) // processes.processes_here()
        # Paddle computes on one thread unless told otherwise.
        paddle.base.core.set_num_threads(threads or max(1, cores))
        self._seed = seed
        self._bf16 = precision == "bf16"
        self._operators = operators
        self._attention = attention
        if self._bf16 and paddle.get_device() == "cpu":
            raise XciteError(
                "PaddlePaddle cannot train in bf16 on a CPU: its autocast has no effect there and "
                "its matrix product has no bfloat16 kernel; set run.precision to float32, or "
                "run.engine to torch"
            )
        if compile:
            raise XciteError("run.compile is PyTorch's; set run.engine to torch or leave it off")
        self.model: Any = build(
            architecture,
            operators=operators,
            attention=attention,
            activation_checkpointing=activation_checkpointing,
            seed=seed,
        )
        if self.world_size > 1:
            self.model = processes.synchronise(self.model)
        self._optimizer: AdamW | None = None
        self._average: MovingAverage | None = None

    def load_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Set the model's weights from canonical arrays; strict (`xcite.canonical.check`)."""
        canonical_state.load_weights(self.model, weights)

    def read_weights(self, *, ema: bool = False) -> dict[str, np.ndarray]:
        """Canonical weights as copies; those of the moving average if ``ema``."""
        return canonical_state.read_weights(self._evaluated(ema))

    def predict(self, images: np.ndarray, *, ema: bool = False) -> np.ndarray:
        """Logits float32 (B, K) in evaluation mode of normalised float32 images (B, C, H, W)."""
        with paddle.no_grad(), self._autocast():
            return _array(self._evaluated(ema)(self._images(images)))

    def features(self, images: np.ndarray) -> np.ndarray:
        """What the classifier sees, float32 (B, D), in evaluation mode."""
        with paddle.no_grad(), self._autocast():
            return _array(self._evaluated().forward_features(self._images(images)))

    def activations(self, images: np.ndarray, *, train: bool = False) -> dict[str, np.ndarray]:
        """Outputs of the named parts in forward order, for alignment."""
        model = self._evaluated()
        if train:
            model.train()
        with paddle.no_grad(), self._autocast(), untouched_statistics(model):
            outputs = model.named_outputs(self._images(images))
        return {name: _array(output) for name, output in outputs.items()}

    def attention(self, images: np.ndarray) -> AttentionMaps:
        """Attention maps of an XCiT in evaluation mode."""
        if not isinstance(self.architecture, XCiTArchitecture):
            raise XciteError("only an XCiT has attention maps; this model is a RegNet")
        with paddle.no_grad(), self._autocast():
            classes, channels = self._evaluated().attention_maps(self._images(images))
        return AttentionMaps([_array(a) for a in classes], [_array(a) for a in channels])

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
        self._distill, self._preprocessing, self._frozen = distill, preprocessing, tuple(frozen)
        parameters = named_parameters(self.model)
        for name, parameter in parameters.items():
            parameter.stop_gradient = name.startswith(self._frozen)
        trained = {name: p for name, p in parameters.items() if not p.stop_gradient}
        if not trained:
            raise XciteError(f"nothing is left to train with {', '.join(frozen)} frozen")
        self._optimizer = AdamW(trained, optim)
        self._average = None
        if optim.ema is not None:
            copy = build(
                self.architecture, operators=self._operators, attention=self._attention, seed=None
            )
            self._average = MovingAverage(self.model, copy, optim.ema)

    def train_step(
        self,
        batches: Sequence[Batch],
        *,
        learning_rate: float,
        paths: Sequence[np.ndarray | None],
        teacher: Sequence[np.ndarray | None],
    ) -> StepResult:
        """One optimiser step over the parts of a batch (gradient accumulation).

        A loss or a gradient that is not finite leaves everything as it was, and so does an
        interruption before the step itself.
        """
        optimizer = self._training()
        pictures = sum(len(batch.pictures) for batch in batches)
        statistics = self._statistics()
        before = [tensor.clone() for tensor in statistics]
        total = paddle.zeros([])
        done = False
        self._train_mode()
        try:
            for batch, scales, answers in zip(batches, paths, teacher, strict=True):
                share = len(batch.pictures) / pictures
                if batch.targets is None:
                    raise XciteError(
                        "a batch to train on needs targets; this one is for evaluation"
                    )
                images = model_input(batch, self._preprocessing)
                part = self._loss(images, batch.targets, scales, answers) * share
                part.backward()
                total += part.detach()
            if self.world_size > 1:
                processes.average([total, *optimizer.gradients()])
            result = StepResult(total.item(), optimizer.gradient_norm())
            if math.isfinite(result.loss) and math.isfinite(result.gradient_norm):
                done = True
                optimizer.step(learning_rate, result.gradient_norm)
                if self._average is not None:
                    self._average.update()
            return result
        finally:
            optimizer.clear_gradients()
            if not done:
                for tensor, old in zip(statistics, before, strict=True):
                    tensor.set_value(old)

    def gradients(
        self,
        images: np.ndarray,
        targets: np.ndarray,
        *,
        paths: np.ndarray | None = None,
        teacher: np.ndarray | None = None,
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Loss and gradient per canonical parameter name in train mode; changes nothing."""
        optimizer = self._training()
        self._train_mode()
        try:
            with untouched_statistics(self.model):
                total = self._loss(images, targets, paths, teacher)
                total.backward()
            if self.world_size > 1:
                processes.average([total.detach(), *optimizer.gradients()])
            named = zip(optimizer.parameters, optimizer.gradients(), strict=True)
            arrays = {name: canonical_state.to_canonical(name, g) for name, g in named}
            return total.item(), arrays
        finally:
            optimizer.clear_gradients()

    def training_state(self) -> dict[str, np.ndarray]:
        """Everything a run needs to go on, on either engine."""
        optimizer = self._training()
        first, second = optimizer.moments()
        average = {} if self._average is None else self.read_weights(ema=True)
        return training_state.pack(
            optimizer.steps,
            weights=self.read_weights(),
            moment1=first,
            moment2=second,
            ema=average,
        )

    def restore_training(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from `training_state` of either engine, after `start_training`."""
        optimizer = self._training()
        shapes = {name: a.shape for name, a in optimizer.moments()[0].items()}
        first = training_state.moments(state, "moment1", shapes)
        second = training_state.moments(state, "moment2", shapes)
        steps = training_state.steps(state)
        average = training_state.section(state, "ema")
        if self._average is not None and not average:
            raise XciteError(
                "the checkpoint has no moving average; start a new run from its weights, or "
                "leave optim.ema empty"
            )
        self.load_weights(training_state.section(state, "weights"))
        if self._average is not None:
            canonical_state.load_weights(self._average.model, average)
        optimizer.restore(first, second, steps)

    def average(self, values: np.ndarray) -> np.ndarray:
        """Mean over all processes of float64 values; every process gets the result."""
        mean = paddle.to_tensor(values, dtype="float64")
        if self.world_size > 1:
            processes.average([mean])
        return mean.numpy()

    def save_program(self, path: Path, *, size: tuple[int, int] | None = None) -> None:
        """Write ``path.json`` and ``path.pdiparams`` (paddle.jit.save), batch always dynamic."""
        height, width = size or (None, None)
        shape = [None, self.architecture.in_chans, height, width]
        images = paddle.static.InputSpec(shape, "float32", "images")
        with tempfile.TemporaryDirectory() as folder:
            paddle.jit.save(self._evaluated(), f"{folder}/program", input_spec=[images])
            for suffix in ("json", "pdiparams"):
                with whole_file(path.with_name(f"{path.name}.{suffix}")) as aside:
                    shutil.copyfile(f"{folder}/program.{suffix}", aside)

    def _training(self) -> AdamW:
        if self._optimizer is None:
            raise XciteError("the engine is not training: call start_training first")
        return self._optimizer

    def _evaluated(self, ema: bool = False) -> Any:
        """The model in evaluation mode."""
        if not ema:
            self.model.eval()
            return self.model
        if self._average is None:
            raise XciteError("there is no moving average: set optim.ema in the recipe")
        return self._average.model

    def _train_mode(self) -> None:
        self.model.train()
        for name, module in self.model.named_sublayers():
            if f"{name}.".startswith(self._frozen):
                module.eval()
        rates = (getattr(self.architecture, name, 0) for name in ("drop_rate", "attn_drop_rate"))
        if any(rates):  # a resumed run must drop the same
            draw = generator(self._seed, "dropout", self._training().steps, self.rank)
            paddle.seed(int(draw.integers(2**31)))

    def _loss(
        self,
        images: np.ndarray,
        targets: np.ndarray,
        paths: np.ndarray | None,
        teacher: np.ndarray | None,
    ) -> Tensor:
        drops = isinstance(self.architecture, XCiTArchitecture) and self.architecture.drop_path > 0
        if paths is None and drops:
            # None means that nothing is dropped; the model itself would draw.
            paths = np.ones((self.architecture.depth, 3, len(images)), np.float32)
        scales = None if paths is None else self._tensor(paths)
        with self._autocast():
            logits = self.model(self._images(images), scales)
        answers = None if teacher is None else self._tensor(teacher)
        return loss(logits, self._tensor(targets), answers, self._distill)

    def _statistics(self) -> list[Tensor]:
        """BatchNorm's running statistics, which a forward pass already changes."""
        state = self.model.state_dict()
        names = [n for n in canonical.shapes(self.architecture) if not canonical.is_parameter(n)]
        return [state[canonical_state.paddle_name(name)] for name in names]

    def _autocast(self) -> AbstractContextManager[Any]:
        return paddle.amp.auto_cast(self._bf16, dtype="bfloat16", level="O1")

    def _images(self, images: np.ndarray) -> Tensor:
        channels = self.architecture.in_chans
        if images.ndim != 4 or images.shape[1] != channels:
            raise XciteError(
                f"the model takes images (batch, {channels}, height, width); "
                f"these are {tuple(images.shape)}"
            )
        return self._tensor(np.asarray(images, np.float32))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return paddle.to_tensor(array)


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.astype("float32").numpy()
    return array
