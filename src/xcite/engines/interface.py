"""The whole boundary between Xcite and a framework: NumPy and plain Python in and out.

An engine supplies steps, never epochs, logging or saving. `tests/contract` walks this class and
compares the names, arguments and defaults of every installed engine with it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from xcite.choices import Choices
from xcite.data.batch import Batch
from xcite.engines.staging import Staged
from xcite.preprocessing import Preprocessing
from xcite.recipe_sections import DistillRecipe, OptimRecipe
from xcite.variants import Architecture


class StepResult:
    """What a training step tells the loop; reading it waits until the device has done the step.

    Attributes:
        loss: mean over the step's pictures (over all processes).
        gradient_norm: L2 norm over all parameters before clipping.
    """

    def __init__(self, loss: Any, gradient_norm: Any) -> None:
        """Numbers, or tensors of one."""
        self._values = loss, gradient_norm

    @cached_property
    def loss(self) -> float:
        return float(self._values[0])

    @cached_property
    def gradient_norm(self) -> float:
        return float(self._values[1])

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StepResult):
            return NotImplemented
        return (self.loss, self.gradient_norm) == (other.loss, other.gradient_norm)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class AttentionMaps:
    """Attention of every layer, softmax already applied, float32.

    Attributes:
        classes: per class-attention layer (B, heads, 1 + N): CLS over CLS and the N patches,
            row-major over the grid of ceil(H / patch) x ceil(W / patch).
        channels: per XCA block (B, heads, C / heads, C / heads): rows are q's channels.
    """

    classes: list[np.ndarray]
    channels: list[np.ndarray]


class Engine(Protocol):
    """One model on one framework, with what is needed to train and to use it.

    Attributes:
        name: "paddle" or "torch".
        architecture: what the model was built from.
        model: the framework's own module.
        rank: number of this process; 0 alone writes files.
        world_size: number of processes.
        asynchronous: whether steps are only queued, for a device that computes beside the
            processor; so on GPUs.
    """

    name: str
    architecture: Architecture
    model: Any
    rank: int
    world_size: int
    asynchronous: bool
    choices: Choices
    precision: str

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

        Args:
            precision: "float32", "tf32" (10 bits in products on NVIDIA's GPUs; refused with
                XciteError elsewhere), "bf16" (autocast; weights stay float32) or "auto", which is
                `fastest_precision`.
            operators: "fast" or "plain", see `xcite.engines.operators`.
            attention: "auto", "usual" or "covariance" form, see docs/performance.md; "plain"
                operators have the usual form only.
            choices: among exact alternatives; by default what this processor is known for.
            sync_batch_norm: with several processes, BatchNorm normalises by the pictures of all of
                them; otherwise each by its own, and running statistics are the mean over them.
            compile: torch.compile, with "cuda-graphs" replayed as graphs of kernels; refused with
                XciteError by an engine or a device that has no such thing.
            device: "auto" (a GPU if the framework finds one), "cpu", "gpu", "cuda:1", "mps", "xpu"
                and so on; refused with XciteError where there is none.
            threads: compute threads; None for all cores.
        """

    @classmethod
    def fastest_precision(cls, device: str) -> str:
        """ "bf16" where the device that would be used has instructions for it, else "float32".

        Args:
            device: as for the constructor.
        """

    @classmethod
    def compiles(cls, device: str) -> bool:
        """Whether operators can be compiled for the device (`Choices.compiled`); may do it.

        Args:
            device: as for the constructor.
        """
        return False

    @property
    def on_cpu(self) -> bool:
        """Whether the model lies on a CPU."""

    def choose(self, choices: Choices) -> None:
        """Compute with other choices from now on; the numbers differ by rounding."""

    def load_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Set the model's weights from canonical arrays.

        Raises:
            XciteError: missing, left-over or misshapen tensors (`xcite.canonical.check`).
        """

    def read_weights(self, *, ema: bool = False) -> dict[str, np.ndarray]:
        """Canonical weights as copies; those of the moving average if ``ema``.

        Raises:
            XciteError: ``ema`` without a moving average; so does `predict`.
        """

    def predict(self, images: np.ndarray, *, ema: bool = False) -> np.ndarray:
        """Logits float32 (B, K) in evaluation mode of normalised float32 images (B, C, H, W)."""

    def forward(self, images: Any, *, features: bool = False, ema: bool = False) -> Any:
        """As `predict` or `features`, of and as the framework's tensors on the device."""

    def tensor(self, array: np.ndarray) -> Any:
        """The array as the framework's tensor on the device, of its own dtype."""

    def features(self, images: np.ndarray) -> np.ndarray:
        """What the classifier sees, float32 (B, D), in evaluation mode."""

    def activations(self, images: np.ndarray, *, train: bool = False) -> dict[str, np.ndarray]:
        """Outputs of the named parts in forward order, for alignment.

        Keys: "patch_embed", "pos_embeder", "blocks.{i}", "cls_token", "cls_attn_blocks.{i}",
        "norm", "head" (tokens as (B, N, C), CLS first where there is one); RegNet: "stem",
        "s{a}.b{b}", "head".
        With ``train`` the batch's own statistics are used and running ones are left untouched.
        """

    def attention(self, images: np.ndarray) -> AttentionMaps:
        """Attention maps in evaluation mode of normalised float32 images (B, C, H, W).

        Raises:
            XciteError: a family without `has_attention_maps`.
        """

    def start_training(
        self,
        optim: OptimRecipe,
        distill: DistillRecipe,
        preprocessing: Preprocessing,
        *,
        frozen: Sequence[str] = (),
    ) -> None:
        """Create optimiser state and moving average.

        Args:
            frozen: beginnings of the names of parameters that are not trained.

        Raises:
            XciteError: nothing is left to train.
        """

    def stage(self, batch: Batch) -> Staged:
        """Get a part of a batch ready; an asynchronous engine begins to send its bytes.

        Raises:
            XciteError: `start_training` was not called, or the batch has no targets.
        """

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

        Args:
            paths: per part, drop-path scales float32 (depth, 3, B) in the order XCA, LPI, MLP;
                None drops nothing.
            teacher: per part, the teacher's logits float32 (B, K), or its classes int64 (B,) for
                the hard loss, as arrays or the framework's tensors; None without distillation.
            distill: the loss of this step, where it is another than `start_training` was given.

        A loss or a gradient norm that is not finite leaves weights, optimiser and average
        untouched and is returned as it is. An asynchronous engine leaves them untouched from then
        on, until `restore_training`: more steps may be queued before somebody reads that one's
        result.

        Raises:
            XciteError: `start_training` was not called, or a part has no targets.
        """

    def gradients(
        self,
        images: np.ndarray,
        targets: np.ndarray,
        *,
        paths: np.ndarray | None = None,
        teacher: np.ndarray | None = None,
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Loss and gradient per canonical parameter name in train mode; changes nothing.

        Args:
            images: normalised float32 (B, C, H, W).
            targets: float32 (B, K), see `xcite.data.batch.Batch`.
            paths: as in `train_step`, of these images; so is ``teacher``.
        """

    def training_state(self) -> dict[str, np.ndarray]:
        """Everything a run needs to go on, on either engine.

        Keys: "weights/NAME", "ema/NAME" and the optimiser's own (AdamW: "moment1/NAME" and
        "moment2/NAME") with canonical names and shapes, and "step" (int64 scalar: optimiser steps
        done).
        """

    def restore_training(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from `training_state` of either engine, after `start_training`.

        Raises:
            XciteError: the state is none of a training run, or of another model or optimiser.
        """

    def average(self, values: np.ndarray) -> np.ndarray:
        """Mean over all processes of float64 values; every process gets the result."""

    def save_program(self, path: Path, *, size: tuple[int, int] | None = None) -> list[str]:
        """Write the model as the framework's own inference program, batch always dynamic.

        Paddle: ``path.json`` and ``path.pdiparams`` (paddle.jit.save); PyTorch: ``path.pt2``
        (torch.export). ``size`` None leaves height and width dynamic.

        Returns:
            The names of its outputs in order: "logits", or "embedding" without a classifier;
            Paddle's classifiers give "probabilities" first, which its own predictors take.
        """
