"""Weights in, checked bundle out.

Written aside, compared with an engine on pictures, measured on validation data where given, and
only then put in place: what exists under the name that was asked for has passed.
"""

import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xcite import __version__
from xcite.deployment import agreement, graph
from xcite.deployment.bundle import BundleInfo, describe, seal_folder, whole_folder
from xcite.deployment.predictor import Predictor
from xcite.engines import create_engine, installed
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.variants import Architecture

VALIDATION_BATCH = 16
PACKAGES = ("numpy", "onnx", "openvino", "onnxruntime", "nncf", "paddlepaddle", "torch")


def export(
    weights: Mapping[str, np.ndarray],
    architecture: Architecture,
    out: str | os.PathLike[str],
    *,
    preprocessing: Preprocessing,
    class_names: list[str] | None = None,
    format: str = "openvino",
    precision: str = "f32",
    size: tuple[int, int] | None = None,
    dynamic: bool = False,
    pictures: str | None = None,
    validation: str | None = None,
    max_drop: float = 1.0,
    engine: str | None = None,
    model: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> BundleInfo:
    """Make a bundle for serving on a CPU; the batch is always dynamic.

    Args:
        weights: canonical arrays; those of either engine's model come from `xcite.read_weights`.
        out: the bundle's folder; an earlier bundle there is replaced.
        format: "onnx", "openvino" or "paddle" (an inference program; needs PaddlePaddle).
        precision: "f32", "bf16", or "int8" (MLPs and stem in 8 bits, the rest in bfloat16; needs
            ``pictures`` to calibrate and ``validation`` to prove; OpenVINO only).
        size: height and width the graph is made for; None for the preprocessing's.
        dynamic: any height and width instead.
        pictures: source of pictures for agreement and calibration; None for the built-in ones.
        validation: source of labelled pictures; top-1 is measured before and after.
        max_drop: points of top-1 that may be lost on ``validation``.
        engine: what to compare with; None for the first installed one.
        say: called with one line per step.

    Returns:
        What was written to ``bundle.json``.

    Raises:
        XciteError: contradictions in the options, disagreement, or too large a loss; nothing of
            the new bundle is left then.
    """
    _check_options(format, precision, architecture, pictures, validation)
    shape = None if dynamic else size or (preprocessing.size, preprocessing.size)
    if shape is not None:
        preprocessing = preprocessing.model_copy(update={"size": max(shape)})
        if validation is not None and shape[0] != shape[1]:
            raise XciteError(
                "accuracy is measured on squares; export an oblong without --validation"
            )
    pixels, origin = agreement.pictures(pictures, preprocessing, shape, agreement.PICTURES)
    reference = _reference(
        weights, architecture, engine or ("paddle" if format == "paddle" else None)
    )
    say(f"compares with the {reference.name} engine on {len(pixels)} pictures ({origin})")
    info = BundleInfo(
        format=format,
        precision=precision,
        model=model,
        architecture=describe(architecture),
        size=shape,
        preprocessing=preprocessing,
        class_names=class_names or [],
        outputs=["logits"],
        agreement={},
        provenance=dict(provenance or {}),
        versions=_versions(),
    )
    if class_names and len(class_names) != architecture.num_classes:
        raise XciteError(
            f"{len(class_names)} class names for {architecture.num_classes} classes; "
            "check the weights"
        )
    with whole_folder(out) as folder:
        if format == "paddle":
            reference.save_program(folder / "model", size=shape)
        else:
            proto = graph.build(weights, architecture, size=shape)
            info = info.model_copy(update={"outputs": [o.name for o in proto.graph.output]})
            if format == "onnx":
                (folder / "model.onnx").write_bytes(proto.SerializeToString())
            else:
                calibration = None
                if precision == "int8":
                    calibration = _calibration(str(pictures), preprocessing, shape)
                    say(f"calibrates on {len(calibration)} pictures")
                _write_openvino(proto, folder, calibration)
        seal_folder(folder, info)
        predictor = Predictor(folder)
        report = _compare(predictor, reference, pixels, precision)
        report["origin"] = origin
        say(
            f"logits differ by {report['largest_difference']:.2g} of "
            f"{report['largest_logit']:.3g} at most, top-1 agrees on "
            f"{report['top1_agreement']:.0%}"
        )
        accuracy = None
        if validation is not None:
            accuracy = _measure(predictor, reference, info, validation, max_drop)
            say(
                f"top-1 {accuracy['before']:.2f} % before, {accuracy['after']:.2f} % after, on "
                f"{accuracy['pictures']} pictures"
            )
        return seal_folder(
            folder, info.model_copy(update={"agreement": report, "accuracy": accuracy})
        )


def _check_options(
    format: str,
    precision: str,
    architecture: Architecture,
    pictures: str | None,
    validation: str | None,
) -> None:
    if format not in ("onnx", "openvino", "paddle"):
        raise XciteError(f"format is {format!r}; choose onnx, openvino or paddle")
    if precision not in ("f32", "bf16", "int8"):
        raise XciteError(f"precision is {precision!r}; choose f32, bf16 or int8")
    if precision != "f32" and format != "openvino":
        raise XciteError(
            f"{precision} is for --format openvino: neither ONNX Runtime nor Paddle Inference runs "
            "this graph faster in it on a CPU; export f32"
        )
    if precision == "int8":
        if architecture.kind != "xcit":
            raise XciteError(
                f"int8 is made for XCiT; export {architecture.with_article} in f32 or bf16"
            )
        if pictures is None or validation is None:
            raise XciteError(
                "int8 needs --pictures to calibrate on and --validation to measure what it costs"
            )


def _reference(
    weights: Mapping[str, np.ndarray], architecture: Architecture, name: str | None
) -> Any:
    names = [name] if name else installed()
    if not names:
        raise XciteError(
            "every export is compared with an engine and none is installed; "
            "pip install 'xcite[torch]' or 'xcite[paddle]'"
        )
    reference = create_engine(names[0], architecture)
    reference.load_weights(weights)
    return reference


def _versions() -> dict[str, str]:
    versions = {"xcite": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _calibration(
    pictures: str, preprocessing: Preprocessing, size: tuple[int, int] | None
) -> list[np.ndarray]:
    from xcite.data.transforms import normalise
    from xcite.deployment.quantization import CALIBRATION_PICTURES

    pixels, _ = agreement.pictures(pictures, preprocessing, size, CALIBRATION_PICTURES)
    return [normalise(picture[None], preprocessing) for picture in pixels]


def _write_openvino(proto: Any, folder: Path, calibration: list[np.ndarray] | None) -> None:
    try:
        import openvino
    except ImportError as error:
        raise XciteError("--format openvino needs OpenVINO: pip install 'xcite[deploy]'") from error
    converted = openvino.Core().read_model(proto.SerializeToString())
    if calibration is not None:
        from xcite.deployment.quantization import quantise

        converted = quantise(converted, calibration)
    openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)


def _compare(
    predictor: Predictor, reference: Any, pixels: np.ndarray, precision: str
) -> dict[str, Any]:
    images = predictor.images(pixels)
    inputs = [images]
    if predictor.info.size is None:  # another, oblong size must do as well
        inputs.append(images[:2, :, : images.shape[2] * 3 // 4 + 1])
    expected = [agreement.reference_logits(reference, part) for part in inputs]
    found = []
    for part in inputs:
        predictor.logits(part)  # the second answer counts: a runtime may keep what it must not
        found.append(predictor.logits(part))
    return agreement.compare(expected, found, precision, reference.name)


def _measure(
    predictor: Predictor, reference: Any, info: BundleInfo, validation: str, max_drop: float
) -> dict[str, Any]:
    from xcite.data.pipeline import EvaluationLoader
    from xcite.data.sources import open_source
    from xcite.evaluation.evaluate import Classifier, EngineClassifier, evaluate

    source = open_source(
        validation,
        channels=info.preprocessing.channels,
        classes=info.class_names or None,
        split="validation",
    )
    loader = EvaluationLoader(source, info.preprocessing, batch=VALIDATION_BATCH, workers=0)
    names = info.class_names or [str(k) for k in range(info.architecture["num_classes"])]
    classifiers: dict[str, Classifier] = {"before": EngineClassifier(reference), "after": predictor}
    result = evaluate(classifiers, loader, info.preprocessing, names)
    before, after = result["before"].top1, result["after"].top1
    if not before - after <= max_drop:
        raise XciteError(
            f"top-1 falls by {before - after:.2f} points on {validation} ({before:.2f} % before, "
            f"{after:.2f} % after); --max-drop allows {max_drop:g}; nothing was written"
        )
    return {
        "data": validation,
        "pictures": result["after"].pictures,
        "before": before,
        "after": after,
        "drop": before - after,
        "max_drop": max_drop,
    }
