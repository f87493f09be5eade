"""The PaddlePaddle engine; `xcite.engines.interface.Engine` says what each method promises."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from xcite.choices import Choices, default_choices
from xcite.engines.paddle import canonical_state, losses, optimizer, pixels, processes
from xcite.engines.paddle.batch_norm import untouched_statistics
from xcite.engines.paddle.build import build
from xcite.engines.paddle.device import Sender, find, use_tf32
from xcite.engines.paddle.fast import use
from xcite.engines.paddle.kernels import library
from xcite.engines.paddle.layers.probabilities import WithProbabilities
from xcite.engines.steps import TrainingEngine
from xcite.errors import XciteError
from xcite.whole_files import whole_file


class Engine(TrainingEngine):
    """One model on PaddlePaddle, with what is needed to train and to use it."""

    name = "paddle"
    _build = staticmethod(build)
    _use = staticmethod(use)
    _untouched_statistics = staticmethod(untouched_statistics)
    _canonical_state = canonical_state
    _losses = losses
    _pixels = pixels
    _optimizers = optimizer
    _processes = processes

    def save_program(self, path: Path, *, size: tuple[int, int] | None = None) -> list[str]:
        """Write ``path.json`` and ``path.pdiparams`` (paddle.jit.save), batch always dynamic."""
        height, width = size or (None, None)
        shape = [None, self.architecture.in_chans, height, width]
        images = paddle.static.InputSpec(shape, "float32", "images")
        with tempfile.TemporaryDirectory() as folder:
            model, outputs = self._evaluated(), ["embedding"]
            if self.architecture.num_classes:
                model, outputs = WithProbabilities(model).eval(), ["probabilities", "logits"]
            paddle.jit.save(model, f"{folder}/program", input_spec=[images])
            for suffix in ("json", "pdiparams"):
                with whole_file(path.with_name(f"{path.name}.{suffix}")) as aside:
                    shutil.copyfile(f"{folder}/program.{suffix}", aside)
        return outputs

    @classmethod
    def fastest_precision(cls, device: str) -> str:
        if not find(device).startswith("gpu"):
            return "float32"  # see `_prepare`
        return "bf16" if paddle.device.cuda.get_device_capability()[0] >= 8 else "float32"

    @classmethod
    def compiles(cls, device: str) -> bool:
        return find(device) == "cpu" and library.available()

    @property
    def on_cpu(self) -> bool:
        return self._device == "cpu"

    def _prepare(self, threads: int) -> None:
        self._device = find(self._device_asked)
        self._sender = Sender(self._device)
        use_tf32(self._device, self.precision == "tf32")
        paddle.set_device(self._device)
        # Paddle computes on one thread unless told otherwise.
        paddle.base.core.set_num_threads(threads)
        if self._bf16 and self._device == "cpu":
            raise XciteError(
                "PaddlePaddle cannot train in bf16 on a CPU: its autocast has no effect there and "
                "its matrix product has no bfloat16 kernel; set run.precision to float32, or "
                "run.engine to torch"
            )

    def _possible(self, choices: Choices | None) -> Choices:
        compiled = self.compiles(self._device_asked)
        choices = choices or default_choices(self.name, compiled=compiled)
        return choices if compiled else choices.model_copy(update={"compiled": False})

    def _placed(self, model: Any) -> Any:
        return model  # Paddle creates tensors on its device

    def _compiled(self) -> Any:
        raise XciteError("run.compile is PyTorch's; set run.engine to torch or leave it off")

    def _autocast(self) -> AbstractContextManager[Any]:
        return paddle.amp.auto_cast(self._bf16, dtype="bfloat16", level="O1")

    @contextmanager
    def _inference(self) -> Iterator[None]:
        with paddle.no_grad(), self._autocast():
            yield

    def _freeze(self, parameter: Tensor, frozen: bool) -> None:
        parameter.stop_gradient = frozen

    def _named_modules(self) -> Any:
        return self.model.named_sublayers()

    def _seed_dropout(self, seed: int) -> None:
        paddle.seed(seed)

    def _assign(self, tensor: Tensor, values: Tensor) -> None:
        tensor.set_value(values)

    def tensor(self, array: np.ndarray) -> Tensor:
        return self._sender.tensor(array)

    def _ordinary(self, tensor: Tensor) -> Tensor:
        return tensor.astype("float32")

    def _ahead(self) -> AbstractContextManager[Callable[[list[Tensor]], None]]:
        return self._sender.ahead()

    def _array(self, tensor: Tensor) -> np.ndarray:
        array: np.ndarray = tensor.astype("float32").numpy()
        return array
