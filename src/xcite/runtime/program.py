"""What every runtime's program is: images in, outputs out, and which output the logits are."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from xcite.errors import XciteError
from xcite.processor import this_processor
from xcite.runtime.precision import as_run
from xcite.runtime.ranking import probabilities

TINY = 1e-12  # stands for a probability that was rounded to zero


@dataclass(frozen=True)
class Arguments:
    """The arguments of `open_program`, as every runtime takes them."""

    path: Path
    called: str
    precision: str
    threads: int | None
    streams: int
    usual: tuple[int, int] | None
    outputs: Sequence[str] | None


class Program(ABC):
    """A program, loaded and ready; `run` may be called from several threads at once.

    Attributes:
        called: what messages call it.
        precision: "f32", "f16", "bf16" or "int8", as it runs.
        notes: what a person should know of how it runs, one line each.
        name: the runtime's: "openvino", "onnxruntime", "paddle", "torchscript" or "torch.export".
        title: the runtime's name in messages.
        suffixes: of the files that the runtime reads.
        extra: what ``pip install 'xcite[...]'`` needs for it.
        streams: parts of a batch that run at the same time.
        outputs: names of what `run` returns.
        takes: (B, C, H, W) of the images, None where any number will do; () if it does not say.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    extra: ClassVar[str] = "deploy"
    streams: int = 1
    outputs: list[str]
    takes: tuple[int | None, ...] = ()
    _answer: str | None = None  # the output that the logits are, once it has run
    _probable: bool = False  # whether that output holds probabilities

    def __init__(self, given: Arguments) -> None:
        self.called = given.called
        self._hint, self.precision, self.notes = as_run(given.precision, this_processor())

    @classmethod
    def reads(cls, path: Path) -> bool:
        """Whether the file is of this runtime's kind."""
        return path.suffix.lower() in cls.suffixes

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the only images it takes; None where it does not say."""
        height, width = self.takes[2:] if len(self.takes) == 4 else (None, None)
        return None if height is None or width is None else (height, width)

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """All outputs by name, of normalised float32 images (B, C, H, W).

        A program made for one batch size gets parts of that size, the last filled up.

        Raises:
            XciteError: the runtime takes no such images; names the program and says why.
        """
        batch = self.takes[0] if self.takes else None
        images = np.ascontiguousarray(images)
        try:
            if batch in (None, len(images)):
                return self._run(images)
            return self._in_parts(images, batch)
        except Exception as error:  # the runtimes' errors share no base class of their own
            raise XciteError(
                f"{self.called} refuses images {images.shape}: {first_line(error)}"
            ) from error

    def _in_parts(self, images: np.ndarray, batch: int) -> dict[str, np.ndarray]:
        lacking = -len(images) % batch
        filled = np.concatenate([images, np.repeat(images[-1:], lacking, axis=0)])
        parts = [self._run(part) for part in np.split(filled, len(filled) // batch)]
        return {
            name: np.concatenate([part[name] for part in parts])[: len(images)]
            if first.shape[:1] == (batch,)
            else first
            for name, first in parts[0].items()
        }

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Logits float32 (B, K) of such images.

        They are the output "logits", or else the first of floating point and shape (B, K). One that
        is the softmax of another is passed over; of one that is alone the logarithm is taken.

        Raises:
            XciteError: refused images, or no such output.
        """
        outputs = self.run(images)
        if self._answer is None:
            self._answer = self._found(outputs, len(images))
            self._probable = self._answer != "logits" and _are_probabilities(outputs[self._answer])
            if self._probable:
                self.notes.append(
                    f"{self.called} gives probabilities alone; their logarithms are its logits"
                )
        answer = outputs[self._answer].astype(np.float32, copy=False)
        return np.log(np.maximum(answer, TINY)) if self._probable else answer

    def _found(self, outputs: dict[str, np.ndarray], count: int) -> str:
        if "logits" in outputs:
            return "logits"
        fit = {
            name: values
            for name, values in outputs.items()
            if values.ndim == 2 and len(values) == count and values.dtype.kind == "f"
        }
        for name, values in fit.items():
            others = (v for other, v in fit.items() if other != name and v.shape == values.shape)
            if not any(np.allclose(values, probabilities(other), atol=1e-3) for other in others):
                return name
        shapes = ", ".join(f"{name} {values.shape}" for name, values in outputs.items())
        raise XciteError(
            f"{self.called} gives no logits (B, classes) for {count} pictures, but {shapes}"
        )

    @abstractmethod
    def _run(self, images: np.ndarray) -> dict[str, np.ndarray]: ...


def first_line(error: Exception) -> str:
    """What went wrong; OpenVINO puts a place in its own code before that."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("The following operation failed in the TorchScript"):
        lines = lines[-1:]  # a trace of its own stands before it
    said = [line for line in lines if not line.startswith("Exception from ")] or lines
    return said[0][:200] if said else type(error).__name__


def _are_probabilities(answer: np.ndarray) -> bool:
    """Whether every row is one of probabilities; a single class has none worth a logarithm."""
    sums = answer.sum(1, dtype=np.float64)
    return answer.shape[1] > 1 and bool((answer >= 0).all() and np.allclose(sums, 1, atol=1e-3))
