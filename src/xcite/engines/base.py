"""What both engines do alike with a model: build, load, evaluate.

`BaseEngine` leaves to `engines/torch/engine.py` and `engines/paddle/engine.py` what the frameworks
do differently: their twin modules by name, and the methods at its end.
"""

import re
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import numpy as np

from xcite.choices import Choices
from xcite.engines.allocation import keep_freed_memory
from xcite.engines.interface import AttentionMaps, Engine
from xcite.errors import XciteError
from xcite.families import Architecture
from xcite.machine import usable_cores
from xcite.recipe_sections import DEVICE, DEVICES

PRECISIONS = ("auto", "float32", "tf32", "bf16")


class BaseEngine(Engine):
    """One model on a framework; `Engine` says what each public method promises."""

    _build: Any  # the function `build`
    _use: Any  # the function of this name
    _untouched_statistics: Any  # the function of this name
    _canonical_state: ModuleType
    _losses: ModuleType
    _optimizers: ModuleType
    _processes: ModuleType

    def __init__(
        self,
        architecture: Architecture,
        *,
        seed: int = 0,
        precision: str = "float32",
        operators: str = "fast",
        attention: str = "auto",
        choices: Choices | None = None,
        activation_checkpointing: bool = False,
        sync_batch_norm: bool = True,
        compile: bool | str = False,
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        """Build the model with `xcite.canonical.initial_weights(architecture, seed)`.

        Raises:
            XciteError: unknown precision, device, operators or form of attention, or something that
                the framework cannot do on this machine.
        """
        if precision not in PRECISIONS:
            raise XciteError(f"unknown precision {precision!r}; choose {', '.join(PRECISIONS)}")
        if not re.fullmatch(DEVICE, device):
            raise XciteError(f"unknown device {device!r}; {DEVICES}")
        keep_freed_memory()
        self.architecture = architecture
        self.rank, self.world_size = self._processes.start(device)
        self._seed = seed
        self.precision = self.fastest_precision(device) if precision == "auto" else precision
        self._bf16 = self.precision == "bf16"
        self._device_asked = device
        self._operators = operators
        self._attention = attention
        self._averaged: Any | None = None
        cores = usable_cores() // self._processes.processes_here()
        self._prepare(threads or max(1, cores))
        self.choices = self._possible(choices)
        self.model = self._new_model(seed, activation_checkpointing)
        self.asynchronous = not self.on_cpu
        self._sync_batch_norm = sync_batch_norm
        if self.world_size > 1 and sync_batch_norm:
            self.model = self._processes.synchronise(self.model)
        self._graphs = compile == "cuda-graphs"
        self._call = self._compiled() if compile else self.model

    def choose(self, choices: Choices) -> None:
        self.choices = choices = self._possible(choices)
        for model in (self.model, self._averaged):
            if model is not None and self._operators == "fast":
                self._use(model, choices)

    def load_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        self._canonical_state.load_weights(self.model, weights)

    def read_weights(self, *, ema: bool = False) -> dict[str, np.ndarray]:
        weights: dict[str, np.ndarray] = self._canonical_state.read_weights(self._evaluated(ema))
        return weights

    def predict(self, images: np.ndarray, *, ema: bool = False) -> np.ndarray:
        return self._array(self.forward(self._images(images), ema=ema))

    def features(self, images: np.ndarray) -> np.ndarray:
        return self._array(self.forward(self._images(images), features=True))

    def forward(self, images: Any, *, features: bool = False, ema: bool = False) -> Any:
        model = self._evaluated(ema)
        call = model if ema else self._call
        if features:
            call = model.forward_features
        with self._inference():
            output = call(images)
        return self._ordinary(output)

    def activations(self, images: np.ndarray, *, train: bool = False) -> dict[str, np.ndarray]:
        model = self._evaluated()
        if train:
            model.train()
        with self._inference(), self._untouched_statistics(model):
            outputs = model.named_outputs(self._images(images))
            return {name: self._array(output) for name, output in outputs.items()}

    def attention(self, images: np.ndarray) -> AttentionMaps:
        if not self.architecture.has_attention_maps:
            kind = self.architecture.with_article
            raise XciteError(f"this model is {kind}, which has no attention maps")
        with self._inference():
            classes, channels = self._evaluated().attention_maps(self._images(images))
            return AttentionMaps(
                [self._array(a) for a in classes], [self._array(a) for a in channels]
            )

    def average(self, values: np.ndarray) -> np.ndarray:
        if self.world_size == 1:
            return np.array(values, np.float64)
        mean = self.tensor(np.array(values, np.float64))
        self._processes.average([mean])
        result: np.ndarray = mean.cpu().numpy()
        return result

    def _possible(self, choices: Choices | None) -> Choices:
        """What this machine can do of the choices; by default what its processor is known for."""
        raise NotImplementedError

    def _new_model(self, seed: int | None, activation_checkpointing: bool = False) -> Any:
        model = self._build(
            self.architecture,
            operators=self._operators,
            attention=self._attention,
            choices=self.choices,
            activation_checkpointing=activation_checkpointing,
            seed=seed,
        )
        return self._placed(model)

    def _evaluated(self, ema: bool = False) -> Any:
        """The model, or its moving average, in evaluation mode."""
        if not ema:
            self.model.eval()
            return self.model
        if self._averaged is None:
            raise XciteError("there is no moving average: set optim.ema in the recipe")
        return self._averaged

    def _images(self, images: np.ndarray) -> Any:
        return self.tensor(np.asarray(images, np.float32))

    # ---- what the frameworks do differently ------------------------------------------------

    @abstractmethod
    def _prepare(self, threads: int) -> None:
        """Use so many threads; refuse a precision that the framework lacks on this machine."""

    @abstractmethod
    def _placed(self, model: Any) -> Any:
        """The model on the device to compute on."""

    @abstractmethod
    def _compiled(self) -> Any:
        """The model as the framework's compiler makes it, or an XciteError."""

    @abstractmethod
    def _autocast(self) -> AbstractContextManager[Any]:
        """Compute in the engine's precision."""

    @abstractmethod
    def _inference(self) -> AbstractContextManager[Any]:
        """Compute in the engine's precision without gradients."""

    @abstractmethod
    def tensor(self, array: np.ndarray) -> Any:
        """The array on the device, of its own dtype; may share the array's memory."""

    @abstractmethod
    def _ordinary(self, tensor: Any) -> Any:
        """A float32 tensor that training may use, of one from `_inference`."""

    @abstractmethod
    def _array(self, tensor: Any) -> np.ndarray:
        """The tensor as float32 NumPy."""
