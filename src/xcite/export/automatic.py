"""The machine chooses: every way that may be the fastest here is made, checked and timed.

A way is a format, a precision and the runtime that runs it. All that agree with the engine take
turns on one batch; the fastest whose accuracy holds, where data to measure it were given, is taken.
"""

import shutil
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from xcite.errors import XciteError
from xcite.export import graph
from xcite.export.options import ExportOptions
from xcite.language import noted, padded, tr, translated, width
from xcite.processor import Processor, this_processor
from xcite.runtime.bundle import BundleInfo, Chosen, Format, Precision, Runtime
from xcite.runtime.precision import native
from xcite.runtime.predictor import Predictor
from xcite.runtime.turns import by_turns
from xcite.tuning.profile import machine
from xcite.variants import Architecture

BATCH = 16  # pictures at a time: the largest batch that OpenVINO's programs are compiled for
ROUNDS = 15
SECONDS = 20.0  # for taking turns; large models get few rounds
UNSTEADY = 1.3  # between the quartiles of one way's times
# The runtimes of each format, and the precisions that may pay on a CPU in it.
_RUNTIMES: dict[Format, tuple[Runtime, ...]] = {
    "openvino": ("openvino",),
    "onnx": ("openvino", "onnxruntime"),
    "paddle": ("paddle",),
}
_PRECISIONS: dict[Format, tuple[Precision, ...]] = {
    "openvino": ("f32", "bf16", "int8"),
    "onnx": ("f32",),
    "paddle": ("f32",),
}


class Way(NamedTuple):
    """One way of running a model; without a runtime on the usual one."""

    format: Format
    precision: Precision
    runtime: Runtime | None


class Made(NamedTuple):
    """A bundle that agrees with the engine, loaded."""

    info: BundleInfo
    predictor: Predictor


def ways(options: ExportOptions, *, installed: Sequence[str]) -> list[Way]:
    """Every way that the options leave open; of those that compute the same, one.

    Args:
        installed: names of the engines.
    """
    if not options.automatic:
        return [Way(cast(Format, options.format), cast(Precision, options.precision), None)]
    found = []
    for format, runtimes in _RUNTIMES.items():
        if options.format not in ("auto", format):
            continue
        if options.format == "auto":
            runtimes = runtimes[-1:]  # OpenVINO makes the same of ONNX as of its own format
        asked = () if options.precision == "auto" else (options.precision,)
        for precision in asked or _PRECISIONS[format]:
            if precision in _PRECISIONS[format] or (format, precision) == ("onnx", "f16"):
                found += [Way(format, precision, runtime) for runtime in runtimes]
    if options.format == "auto" and "paddle" not in installed:
        found = [way for way in found if way.format != "paddle"]
    return found


def hopeless(
    way: Way,
    options: ExportOptions,
    architecture: Architecture,
    reference: str,
    processor: Processor | None = None,
) -> str | None:
    """Why a way need not be tried; None if it must.

    Args:
        reference: the engine that is compared with.
        processor: None for this one.
    """
    if way.format == "paddle" and reference != "paddle":
        return "PaddlePaddle itself writes its programs; leave --engine out"
    if way.precision == options.precision:  # asked for by name
        return None
    if not native(way.precision, processor or this_processor()):
        return f"this processor has no instructions for {way.precision}"
    if way.precision == "int8":
        if not graph.bears_int8(architecture):
            return "int8 is made for XCiT"
        if options.pictures is None or options.validation is None:
            return "int8 needs --pictures and --validation"
    return None


def take_fastest(
    folder: Path,
    candidates: Sequence[Way],
    left_out: Callable[[Way], str | None],
    make: Callable[[Path, Way], Made],
    checked: Callable[[Made], Made],
    images: np.ndarray,
    say: Callable[[str], None],
) -> BundleInfo:
    """Try the candidates and leave the files of the chosen one in a folder.

    Args:
        folder: an empty one.
        left_out: why a candidate need not be tried.
        make: makes a candidate's bundle in a folder; raises `XciteError` if it does not agree.
        checked: measures accuracy, where there are data; raises `XciteError` if it falls.
        images: normalised float32 (n, C, H, W) to repeat for a batch.

    Returns:
        The chosen bundle's description, not sealed yet.

    Raises:
        XciteError: none can be taken; says why of each.
    """
    reasons: dict[Way, str] = {}
    made: dict[Way, Made] = {}
    for way in candidates:
        reason = left_out(way)
        if reason is None:
            say(tr("tries {format} in {precision} on {runtime}", **way._asdict()))
            place = folder / "-".join(map(str, way))
            place.mkdir()
            try:
                made[way] = make(place, way)
            except XciteError as error:
                reason = str(error).removesuffix("; nothing was written")
        if reason is not None:
            reasons[way] = reason
    batch = np.resize(images, (BATCH, *images.shape[1:]))
    works = [lambda one=one: one.predictor.run(batch) for one in made.values()]
    times = by_turns(works, rounds=ROUNDS, limit=SECONDS) if works else []
    speeds = {way: BATCH / statistics.median(t) for way, t in zip(made, times, strict=True)}
    chosen = None
    for way in sorted(speeds, key=speeds.__getitem__, reverse=True):
        try:
            made[way] = checked(made[way])
        except XciteError as error:
            reasons[way] = str(error).removesuffix("; nothing was written")
            continue
        chosen = way
        break
    for line in _table(candidates, speeds, reasons, chosen):
        say(line)
    if any(_unsteady(one) for one in times):
        say(
            noted(
                "the times of one way differ much, other programs compute here: choose again later"
            )
        )
    if chosen is None:
        told = (f"{way.format} {way.precision}: {reason}" for way, reason in reasons.items())
        raise XciteError(f"no format and precision can be taken here ({', '.join(told)})")
    info = made[chosen].info
    made.clear()
    for path in (folder / "-".join(map(str, chosen))).iterdir():
        path.rename(folder / path.name)
    for way in candidates:
        shutil.rmtree(folder / "-".join(map(str, way)), ignore_errors=True)
    tried = [_row(way, speeds, reasons) for way in candidates]
    because = Chosen(
        runtime=cast(Runtime, chosen.runtime),
        images_per_second=tried[candidates.index(chosen)]["images_per_second"],
        batch=BATCH,
        tried=tried,
        machine=machine(),
    )
    return info.model_copy(update={"chosen": because})


def _unsteady(seconds: Sequence[float]) -> bool:
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return high > UNSTEADY * low


def _row(way: Way, speeds: dict[Way, float], reasons: dict[Way, str]) -> dict[str, Any]:
    row: dict[str, Any] = way._asdict()
    if way in speeds:
        row["images_per_second"] = round(speeds[way], 2)
    if way in reasons:
        row["left_out"] = reasons[way]
    return row


def _table(
    candidates: Sequence[Way],
    speeds: dict[Way, float],
    reasons: dict[Way, str],
    chosen: Way | None,
) -> list[str]:
    """What was tried and why the others were not, in columns."""
    rows = [[tr("format"), tr("precision"), tr("runtime"), tr("images/s"), ""]]
    for way in candidates:
        speed = f"{speeds[way]:.1f}" if way in speeds else "-"
        remark = tr("chosen") if way == chosen else translated(reasons.get(way, ""))
        rows.append([*map(str, way), speed, remark])
    columns = [max(map(width, column)) + 2 for column in zip(*rows, strict=True)]
    return [
        "".join(padded(cell, column) for cell, column in zip(row, columns, strict=True)).rstrip()
        for row in rows
    ]
