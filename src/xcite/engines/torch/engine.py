"""The PyTorch engine; `xcite.engines.interface.Engine` says what each method promises."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xcite.choices import Choices, default_choices
from xcite.engines.steps import TrainingEngine
from xcite.engines.torch import canonical_state, losses, optimizer, pixels, processes
from xcite.engines.torch.batch_norm import untouched_statistics
from xcite.engines.torch.build import build
from xcite.engines.torch.device import Sender, find, use_tf32
from xcite.engines.torch.fast import use
from xcite.engines.torch.kernels import library
from xcite.errors import XciteError
from xcite.processor import this_processor
from xcite.whole_files import whole_file


class Engine(TrainingEngine):
    """One model on PyTorch, with what is needed to train and to use it."""

    name = "torch"
    _build = staticmethod(build)
    _use = staticmethod(use)
    _untouched_statistics = staticmethod(untouched_statistics)
    _canonical_state = canonical_state
    _losses = losses
    _pixels = pixels
    _optimizers = optimizer
    _processes = processes

    def save_program(self, path: Path, *, size: tuple[int, int] | None = None) -> list[str]:
        """Write ``path.pt2`` (torch.export), batch always dynamic."""
        height, width = size or (64, 64)
        example = self.tensor(np.zeros((2, self.architecture.in_chans, height, width), np.float32))
        auto = torch.export.Dim.DYNAMIC
        dynamic = {0: auto} if size else {0: auto, 2: auto, 3: auto}
        with torch.no_grad():
            program = torch.export.export(self._evaluated(), (example,), dynamic_shapes=(dynamic,))
        buffer = BytesIO()
        torch.export.save(program, buffer)
        with whole_file(path.with_name(f"{path.name}.pt2")) as aside:
            aside.write_bytes(buffer.getbuffer())
        return ["logits" if self.architecture.num_classes else "embedding"]

    @classmethod
    def fastest_precision(cls, device: str) -> str:
        found = find(device)
        if found.type == "cuda":
            return "bf16" if torch.cuda.get_device_capability(found)[0] >= 8 else "float32"
        if found.type != "cpu":
            return "float32"
        return "bf16" if this_processor().native_bf16 else "float32"

    @classmethod
    def compiles(cls, device: str) -> bool:
        return find(device).type == "cpu" and library.available()

    @property
    def on_cpu(self) -> bool:
        return self._device.type == "cpu"

    def _prepare(self, threads: int) -> None:
        self._device = find(self._device_asked)
        self._sender = Sender(self._device)
        use_tf32(self._device, self.precision == "tf32")
        torch.set_num_threads(threads)

    def _possible(self, choices: Choices | None) -> Choices:
        choices = choices or default_choices(self.name)
        lost = choices.compiled and not self.compiles(self._device_asked)
        return choices.model_copy(update={"compiled": False}) if lost else choices

    def _placed(self, model: Any) -> Any:
        return model.to(self._device)

    def _compiled(self) -> Any:
        if self._device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
            raise XciteError(
                "run.compile needs a C++ compiler and there is no g++ on this machine; "
                "install one or leave run.compile off"
            )
        if self._graphs and self._device.type != "cuda":
            raise XciteError(
                "run.compile is cuda-graphs, and there is no CUDA device to replay them on; set "
                "run.compile to true or false"
            )
        return torch.compile(self.model, mode="reduce-overhead" if self._graphs else None)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        with torch.inference_mode(), self._autocast():
            yield

    def _freeze(self, parameter: Tensor, frozen: bool) -> None:
        parameter.requires_grad_(not frozen)

    def _named_modules(self) -> Any:
        return self.model.named_modules()

    def _seed_dropout(self, seed: int) -> None:
        torch.manual_seed(seed)

    def _assign(self, tensor: Tensor, values: Tensor) -> None:
        tensor.copy_(values)

    def tensor(self, array: np.ndarray) -> Tensor:
        return self._sender.tensor(array)

    def _ordinary(self, tensor: Tensor) -> Tensor:
        return tensor.float().clone()  # what inference mode makes is of no use to a backward pass

    def _ahead(self) -> AbstractContextManager[Callable[[list[Tensor]], None]]:
        return self._sender.ahead()

    def _array(self, tensor: Tensor) -> np.ndarray:
        array: np.ndarray = tensor.float().cpu().numpy()
        return array
