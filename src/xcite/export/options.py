"""The options of an export; contradictions are refused before any work."""

from dataclasses import dataclass
from typing import Literal, get_args

from xcite.errors import XciteError
from xcite.export.graph_builder import OPSETS
from xcite.runtime.bundle import Format, Precision


@dataclass(frozen=True)
class ExportOptions:
    """How a bundle is made and what it must pass.

    Attributes:
        format: "onnx", "openvino" or "paddle" (an inference program; needs PaddlePaddle); "auto"
            tries all and takes the fastest here, see `xcite.export.automatic`.
        precision: "f32"; "f16" (half the size, computed in float16 but for norms; ONNX only);
            "bf16", or "int8" (MLPs and stem in 8 bits, the rest in bfloat16; needs ``pictures`` to
            calibrate and ``validation`` to prove), OpenVINO only; "auto" tries what may pay here.
        opset: ONNX's operator set, one of `xcite.export.graph.OPSETS`; None for the usual one.
        size: height and width the graph is made for; None for the preprocessing's.
        dynamic: any height and width instead.
        pictures: source of pictures for agreement and calibration; None for the built-in ones.
        validation: source of labelled pictures; top-1 is measured before and after.
        max_drop: points of top-1 that may be lost on ``validation``.
        engine: what to compare with; None for paddle where the format is, else the first installed.

    Raises:
        XciteError: unknown words, or options that contradict each other.
    """

    format: Format | Literal["auto"] = "openvino"
    precision: Precision | Literal["auto"] = "f32"
    opset: int | None = None
    size: tuple[int, int] | None = None
    dynamic: bool = False
    pictures: str | None = None
    validation: str | None = None
    max_drop: float = 1.0
    engine: str | None = None

    def __post_init__(self) -> None:
        if self.format not in ("auto", *get_args(Format)):
            raise XciteError(f"format is {self.format!r}; choose auto, onnx, openvino or paddle")
        if self.precision not in ("auto", *get_args(Precision)):
            raise XciteError(
                f"precision is {self.precision!r}; choose auto, f32, f16, bf16 or int8"
            )
        if self.opset is not None and self.format != "onnx":
            raise XciteError("an operator set is for --format onnx; leave --opset out")
        if self.opset is not None and self.opset not in OPSETS:
            raise XciteError(f"--opset is {self.opset}; choose {OPSETS[0]} to {OPSETS[-1]}")
        if self.precision == "f16" and self.format not in ("onnx", "auto"):
            raise XciteError("f16 is for --format onnx and accelerators; export f32 for this CPU")
        if self.precision in ("bf16", "int8") and self.format not in ("openvino", "auto"):
            raise XciteError(
                f"{self.precision} is for --format openvino: neither ONNX Runtime nor Paddle "
                "Inference runs this graph faster in it on a CPU; export f32"
            )
        if self.precision == "int8" and (self.pictures is None or self.validation is None):
            raise XciteError(
                "int8 needs --pictures to calibrate on and --validation to measure what it costs"
            )
        if self.format == "paddle" and self.engine == "torch":
            raise XciteError("PaddlePaddle itself writes its programs; leave --engine out")

    @property
    def automatic(self) -> bool:
        """Whether the machine is to choose."""
        return "auto" in (self.format, self.precision)

    def input_size(self, usual: tuple[int, int]) -> tuple[int, int] | None:
        """Height and width of the graph's input; None for any.

        Args:
            usual: height and width that the weights were trained for.
        """
        return None if self.dynamic else self.size or usual
