"""PyTorch's programs: TorchScript archives and those of torch.export, told by what they hold."""

import logging
import threading
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xcite.engines import quietly_imported
from xcite.errors import XciteError
from xcite.runtime.exported_archive import inert_copy
from xcite.runtime.program import Arguments, Program
from xcite.weights.foreign_files import program_of
from xcite.weights.torch_files import archive_names


class _TorchProgram(Program):
    """One call at a time, on the CPU; outputs may be a tensor, or any nest of tensors."""

    extra = "torch"
    suffixes = (".pt2", ".pt", ".pth", ".torchscript")

    def __init__(self, given: Arguments) -> None:
        self._torch = quietly_imported("torch")
        super().__init__(given)
        self.outputs = []  # known when it has run
        self._lock = threading.Lock()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch to those who make such programs
            self._module = self._load(given)

    @classmethod
    def reads(cls, path: Path) -> bool:
        return program_of(archive_names(path)) == cls.name

    @abstractmethod
    def _load(self, given: Arguments) -> Any: ...

    def _run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        with self._lock, self._torch.no_grad():
            answer = self._module(self._torch.from_numpy(images))
        named = dict(_named(answer, ""))
        self.outputs = list(named)
        return {name: tensor.cpu().numpy() for name, tensor in named.items()}


class TorchScript(_TorchProgram):
    """``torch.jit.save``'s; PyTorch reads its pickles in C++, where no Python can be called."""

    name, title = "torchscript", "TorchScript"

    def _load(self, given: Arguments) -> Any:
        return self._torch.jit.load(str(given.path), map_location="cpu").eval()


class ExportedProgram(_TorchProgram):
    """``torch.export.save``'s; PyTorch is given a copy that holds graph and tensors alone."""

    name, title = "torch.export", "torch.export"

    def _load(self, given: Arguments) -> Any:
        export = quietly_imported("torch.export")
        log = logging.getLogger("torch.export")  # prints a page before it raises
        level = log.level
        log.setLevel(logging.CRITICAL)
        try:
            program = export.load(inert_copy(given.path, given.called))
        finally:
            log.setLevel(level)
        own = set(program.graph_signature.user_inputs)
        shapes = [
            node.meta["val"].shape
            for node in program.graph.nodes
            if node.op == "placeholder" and node.name in own
        ]
        if len(shapes) != 1:
            raise XciteError(
                f"{given.called} takes {len(shapes)} inputs; it must take images alone"
            )
        self.takes = tuple(n if isinstance(n, int) else None for n in shapes[0])
        return program.module()


def _named(answer: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Tensors by the keys and places that lead to them: "logits", "features 1"."""
    if hasattr(answer, "_asdict"):
        answer = answer._asdict()
    if isinstance(answer, (list, tuple)):
        answer = dict(enumerate(answer))
    if isinstance(answer, dict):
        for key, value in answer.items():
            yield from _named(value, f"{name} {key}".strip())
    elif hasattr(answer, "detach"):
        tensor = answer.detach()
        yield name or "output", tensor.float() if tensor.is_floating_point() else tensor
