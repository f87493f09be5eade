"""Exact alternatives that a machine chooses among: numbers differ by rounding, times greatly."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from xcite.processor import Processor, this_processor


class Choices(BaseModel):
    """How an engine's fast operators compute on a CPU.

    A run keeps the choices it began with, so that it resumes exactly.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    products: Literal["matrix", "convolution"] = Field(
        description="PyTorch, float32: linear maps as matrix products (MKL) or 1 x 1 convolutions "
        "(oneDNN)"
    )
    apart_from: int = Field(
        ge=0,
        description="convolutions: multiply-adds from which products of each picture go one by one",
    )
    slice_bytes: int = Field(ge=256, description="MLP: bytes of one channel of a slice of tokens")
    covariance_above: float = Field(
        ge=0, description="tokens per channel above which attention takes the covariance form"
    )
    turned_gelu: bool = Field(
        description="PyTorch, bf16: GELU of pictures by the kernel that takes plain tensors only"
    )
    # Runs that were begun before there was this one go on without.
    compiled: bool = Field(
        default=False,
        description="float32: operators that this machine's C++ compiler makes at first use, where "
        "it has one",
    )


def default_choices(
    engine: str, processor: Processor | None = None, *, compiled: bool = True
) -> Choices:
    """What is known to be good by the instruction set alone; docs/performance.md has the figures.

    Args:
        engine: "paddle" or "torch".
        processor: this one, if left out.
        compiled: whether there is a compiler for operators.
    """
    processor = processor or this_processor()
    newer = "avx512bw" in processor.instructions
    compiled = compiled and (engine == "paddle" or not newer)
    # MKL leaves AVX-512 unused on AMD's processors, oneDNN's convolutions use it.
    wide = newer and processor.vendor == "AuthenticAMD"
    return Choices(
        products="convolution" if wide else "matrix",
        apart_from=25_000_000,
        slice_bytes=(6272 if wide else 12544) if engine == "torch" else 3136,
        covariance_above=_covariance_above(engine, wide, compiled),
        turned_gelu=True,
        compiled=compiled,
    )


def _covariance_above(engine: str, wide: bool, compiled: bool) -> float:
    if engine == "torch":
        return 1.75 if wide else 1.5  # the fewer operations are worth more where each is slower
    return 5.0 if compiled else 0.75  # Paddle itself is slow at turning q, k and v round
