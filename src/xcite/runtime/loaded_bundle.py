"""A bundle in memory: images in, outputs out, in whatever process it is asked."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from xcite.errors import XciteError
from xcite.machine import usable_cores
from xcite.preprocessing import Preprocessing, sides
from xcite.runtime.bundle import BundleInfo, bundle_folder, read_info, sealed_program
from xcite.runtime.forked import leave_behind_in_children, refuse_what_would_hang
from xcite.runtime.program import Program
from xcite.runtime.programs import open_program

if TYPE_CHECKING:
    from xcite.runtime.inputs import ArrayLike


class _Loaded(NamedTuple):
    """A program and the process in which it may run."""

    program: Program
    process: int


class LoadedBundle:
    """A bundle's program, loaded; `xcite.runtime.predictor.Predictor` says what its fields are."""

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        runtime: str | None = None,
        threads: int | None = None,
        streams: int | None = None,
        mode: str = "latency",
        precision: str | None = None,
    ) -> None:
        """Load and verify a bundle.

        Args:
            bundle: the folder `xcite export` wrote, or one of its files.
            runtime: None for the one that was the fastest at the export, else the usual one, of
                those that are installed and read the bundle's format.
            threads: None for all cores this process may use.
            streams: None for 1 (latency) or as many as there are threads, 4 at most (throughput).
            mode: "latency" answers one batch as soon as possible; "throughput" cuts a batch into
                one part per stream, which wastes less on waiting between threads.
            precision: "bf16" runs a float32 bundle in bfloat16 where the runtime can; None as the
                bundle says.

        Raises:
            XciteError: damaged bundle, missing or unfit runtime, or a contradiction in the options.
        """
        if mode not in ("latency", "throughput"):
            raise XciteError(f"mode is {mode!r}; choose latency or throughput")
        for name, value in (("threads", threads), ("streams", streams)):
            if value is not None:
                at_least_one(name, value)
        self.bundle = bundle_folder(bundle) or Path(bundle)
        self._place = self.bundle.absolute()  # where it is found from another working folder
        self.info: BundleInfo = read_info(self.bundle)
        self.preprocessing: Preprocessing = self.info.preprocessing
        self.mode = mode
        self.threads = threads or usable_cores()
        if streams is None:
            streams = min(self.threads, 4) if mode == "throughput" else 1
        self.streams = streams
        if precision not in (None, self.info.precision) and (
            precision != "bf16" or self.info.precision != "f32" or self.info.format == "paddle"
        ):
            raise XciteError(
                f"the bundle is {self.info.precision} and cannot run in {precision}; "
                "export it that way"
            )
        self._precision = precision or self.info.precision  # as asked for, not as it runs
        self.class_names = list(self.info.class_names)
        self._closed = False
        self._loaded: _Loaded | None = self._load(runtime)

    def _load(self, runtime: str | None) -> _Loaded:
        refuse_what_would_hang(self.info.format, self.bundle)
        program = open_program(
            sealed_program(self._place, self.info),
            runtime=runtime,
            preferred=self._fastest(),
            threads=self.threads,
            streams=self.streams,
            precision=self._precision,
            usual=self.info.size or sides(self.preprocessing.size),
            called=f"{self.info.format} bundle {self.bundle}",
            outputs=self.info.outputs,
        )
        leave_behind_in_children(program)
        self._width = _checked(self.bundle, self.info, program.outputs)
        self.notes = list(program.notes)
        self.runtime = program.name
        self.precision = program.precision
        self.streams = program.streams
        return _Loaded(program, os.getpid())

    def _fastest(self) -> str | None:
        """The runtime that the export found to be the fastest; None in another precision."""
        chosen = self.info.chosen
        return chosen.runtime if chosen and self._precision == self.info.precision else None

    @property
    def _program(self) -> Program:
        """The program of this process."""
        self._refuse_closed()
        loaded = self._loaded
        if loaded is None or loaded.process != os.getpid():
            _same_bundle(read_info(self._place), self.info.seal, self.bundle)
            self._loaded = loaded = self._load(self.runtime)
        return loaded.program

    def _refuse_closed(self) -> None:
        if self._closed:
            raise XciteError(f"the Predictor of {self.bundle} is closed; make another one")

    def close(self) -> None:
        """Give the program's memory back; calls that run are finished, later ones are refused."""
        self._closed = True
        self._loaded = None

    def __enter__(self) -> Self:
        self._refuse_closed()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # Loaded at the first use: a pool's worker that fails to unpickle dies, and the pool waits.
        self._refuse_closed()
        return {**self.__dict__, "_loaded": None}

    def __repr__(self) -> str:
        return f"Predictor({str(self.bundle)!r}, runtime={self.runtime!r})"

    def run(self, images: "np.ndarray | ArrayLike") -> dict[str, np.ndarray]:
        """All outputs of one pass by name, see `BundleInfo.outputs`.

        Args:
            images: normalised float32 (B, C, H, W), an array or a tensor.

        Raises:
            XciteError: images of another type, shape or size than the graph takes, or with numbers
                that are not finite.
        """
        from xcite.runtime.inputs import as_array

        images = as_array(images)
        channels, size = self.preprocessing.channels, self.info.size
        if images.ndim != 4 or images.shape[1] != channels or images.dtype != np.float32:
            raise XciteError(
                f"images are {images.dtype} {images.shape}; expected float32 (B, {channels}, H, W)"
            )
        if size is not None and images.shape[2:] != size:
            raise XciteError(
                f"images are {images.shape[2]} x {images.shape[3]} pixels; this bundle was made "
                f"for {size[0]} x {size[1]}: export with --size dynamic for any size"
            )
        if not len(images):
            raise XciteError("the batch is empty")
        _refuse_not_finite(images)
        outputs = self._program.run(images)
        answer = self.info.answer
        expected = (len(images), self._width)
        if outputs[answer].shape != expected:
            raise XciteError(
                f"bundle {self.bundle} gives {answer} {outputs[answer].shape} where its "
                f"description says {expected}; export again"
            )
        return outputs


def at_least_one(name: str, value: int) -> None:
    """Refuse a number of things below 1."""
    if value < 1:
        raise XciteError(f"{name} is {value}; it must be at least 1")


def _same_bundle(info: BundleInfo, seal: str, bundle: Path) -> None:
    if info.seal != seal:
        raise XciteError(
            f"bundle {bundle} was exported again since this Predictor loaded it; make another one"
        )


def _refuse_not_finite(images: np.ndarray) -> None:
    finite = np.isfinite(images)
    if not finite.all():
        first = int(np.argmin(finite.all(axis=(1, 2, 3))))
        raise XciteError(
            f"image {first} of the batch of {len(images)} has NaN or infinite numbers; "
            "look at how it was normalised"
        )


def _checked(bundle: Path, info: BundleInfo, outputs: Sequence[str]) -> int:
    """The width of the answers, after comparing a bundle's description with its program."""
    architecture = info.built()
    answer = "logits" if architecture.num_classes else "embedding"
    wrong = sorted({answer, *info.outputs} - set(outputs))
    if wrong:
        raise XciteError(
            f"bundle {bundle} has no output {', '.join(wrong)}, only {', '.join(outputs)}; "
            "export again"
        )
    channels = info.preprocessing.channels
    if architecture.in_chans != channels:
        raise XciteError(
            f"bundle {bundle} takes {architecture.in_chans} channels and prepares {channels}; "
            "export again"
        )
    return architecture.num_classes or architecture.num_features
