"""The PyTorch engine; `xcite.engines.interface.Engine` says what each method promises."""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xcite.data.batch import Batch
from xcite.engines import training_state
from xcite.engines.allocation import keep_freed_memory
from xcite.engines.interface import AttentionMaps, StepResult
from xcite.engines.pixels import model_input
from xcite.engines.torch import canonical_state, processes
from xcite.engines.torch.build import build
from xcite.engines.torch.losses import loss
from xcite.engines.torch.optimizer import AdamW, MovingAverage, named_parameters
from xcite.engines.torch.xcit import untouched_statistics
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.randomness import generator
from xcite.recipe import DistillRecipe, OptimRecipe
from xcite.variants import Architecture, XCiTArchitecture
from xcite.whole_files import whole_file


class Engine:
    """One model on PyTorch, with what is needed to train and to use it."""

    name = "torch"

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
            XciteError: unknown precision, or no compiler for ``compile``.
        """
        if precision not in ("float32", "bf16"):
            raise XciteError(f"unknown precision {precision!r}; choose float32 or bf16")
        keep_freed_memory()
        self.architecture = architecture
        self.rank, self.world_size = processes.start()
        cores = len(os.sched_getaffinity(0)) // processes.processes_here()
        torch.set_num_threads(threads or max(1, cores))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._seed = seed
        self._bf16 = precision == "bf16"
        self._operators = operators
        self._attention = attention
        self.model: Any = build(
            architecture,
            operators=operators,
            attention=attention,
            activation_checkpointing=activation_checkpointing,
            seed=seed,
        ).to(self._device)
        if self.world_size > 1:
            self.model = processes.synchronise(self.model)
        self._call: Any = self.model
        if compile:
            if self._device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
                raise XciteError(
                    "run.compile needs a C++ compiler and there is no g++ on this machine; "
                    "install one or leave run.compile off"
                )
            self._call = torch.compile(self.model)
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
        model = self._evaluated(ema)
        call = self._call if model is self.model else model
        with torch.inference_mode(), self._autocast():
            return _array(call(self._images(images)))

    def features(self, images: np.ndarray) -> np.ndarray:
        """What the classifier sees, float32 (B, D), in evaluation mode."""
        with torch.inference_mode(), self._autocast():
            return _array(self._evaluated().forward_features(self._images(images)))

    def activations(self, images: np.ndarray, *, train: bool = False) -> dict[str, np.ndarray]:
        """Outputs of the named parts in forward order, for alignment."""
        model = self._evaluated().train(train)
        with torch.inference_mode(), self._autocast(), untouched_statistics(model):
            outputs = model.named_outputs(self._images(images))
        return {name: _array(output) for name, output in outputs.items()}

    def attention(self, images: np.ndarray) -> AttentionMaps:
        """Attention maps of an XCiT in evaluation mode."""
        if not isinstance(self.architecture, XCiTArchitecture):
            raise XciteError("only an XCiT has attention maps; this model is a RegNet")
        with torch.inference_mode(), self._autocast():
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
            parameter.requires_grad_(not name.startswith(self._frozen))
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        if not trained:
            raise XciteError(f"nothing is left to train with {', '.join(frozen)} frozen")
        self._optimizer = AdamW(trained, optim)
        self._average = None
        if optim.ema is not None:
            copy = build(
                self.architecture, operators=self._operators, attention=self._attention, seed=None
            ).to(self._device)
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
        total = torch.zeros((), device=self._device)
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
                    tensor.copy_(old)

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
        mean = torch.tensor(values, dtype=torch.float64, device=self._device)
        if self.world_size > 1:
            processes.average([mean])
        return mean.cpu().numpy()

    def save_program(self, path: Path, *, size: tuple[int, int] | None = None) -> None:
        """Write ``path.pt2`` (torch.export), batch always dynamic."""
        height, width = size or (64, 64)
        example = torch.zeros(2, self.architecture.in_chans, height, width, device=self._device)
        auto = torch.export.Dim.DYNAMIC
        dynamic = {0: auto} if size else {0: auto, 2: auto, 3: auto}
        with torch.no_grad():
            program = torch.export.export(self._evaluated(), (example,), dynamic_shapes=(dynamic,))
        buffer = BytesIO()
        torch.export.save(program, buffer)
        with whole_file(path.with_name(f"{path.name}.pt2")) as aside:
            aside.write_bytes(buffer.getbuffer())

    def _training(self) -> AdamW:
        if self._optimizer is None:
            raise XciteError("the engine is not training: call start_training first")
        return self._optimizer

    def _evaluated(self, ema: bool = False) -> Any:
        """The model in evaluation mode."""
        if not ema:
            return self.model.eval()
        if self._average is None:
            raise XciteError("there is no moving average: set optim.ema in the recipe")
        return self._average.model

    def _train_mode(self) -> None:
        self.model.train()
        for name, module in self.model.named_modules():
            if f"{name}.".startswith(self._frozen):
                module.eval()
        rates = (getattr(self.architecture, name, 0) for name in ("drop_rate", "attn_drop_rate"))
        if any(rates):  # a resumed run must drop the same
            draw = generator(self._seed, "dropout", self._training().steps, self.rank)
            torch.manual_seed(int(draw.integers(2**31)))

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
            logits = self._call(self._images(images), scales)
        answers = None if teacher is None else self._tensor(teacher)
        return loss(logits, self._tensor(targets), answers, self._distill)

    def _statistics(self) -> list[Tensor]:
        """BatchNorm's running statistics, which a forward pass already changes."""
        return list(self.model.buffers())

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)

    def _images(self, images: np.ndarray) -> Tensor:
        channels = self.architecture.in_chans
        if images.ndim != 4 or images.shape[1] != channels:
            raise XciteError(
                f"the model takes images (batch, {channels}, height, width); "
                f"these are {tuple(images.shape)}"
            )
        return self._tensor(np.asarray(images, np.float32))

    def _tensor(self, array: np.ndarray) -> Tensor:
        # PyTorch shares a NumPy array's memory, and warns about one that it must not write to
        return torch.as_tensor(np.require(array, requirements=["C", "W"]), device=self._device)


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.float().cpu().numpy()
    return array
