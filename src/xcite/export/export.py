"""Weights in, checked bundle out.

Written aside, compared with an engine on pictures, measured on validation data where given, and
only then put in place: whatever has the bundle's name has passed.
"""

import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xcite import __version__
from xcite.data.transforms import normalise
from xcite.engines import installed
from xcite.engines.interface import Engine
from xcite.errors import XciteError
from xcite.export import agreement, graph, paddleclas
from xcite.export.automatic import Made, Way, hopeless, take_fastest, ways
from xcite.export.onnx_file import write_onnx
from xcite.export.options import ExportOptions
from xcite.installed import versions_of
from xcite.language import noted, tr
from xcite.preprocessing import Preprocessing, sides
from xcite.runtime.bundle import PROGRAMS, BundleInfo, describe, seal_folder, whole_bundle
from xcite.runtime.classifier import Classifier, EngineClassifier
from xcite.runtime.opening import on_engine
from xcite.runtime.predictor import Predictor
from xcite.runtime.programs import import_openvino
from xcite.variants import Architecture
from xcite.weights import WeightFile

VALIDATION_BATCH = 16
PACKAGES = ("numpy", "onnx", "openvino", "onnxruntime", "nncf", "paddlepaddle", "torch")


def export(
    weights: WeightFile,
    out: str | os.PathLike[str],
    options: ExportOptions | None = None,
    *,
    called: str = "the model",
    say: Callable[[str], None] = lambda line: None,
) -> BundleInfo:
    """Make a bundle for serving on a CPU; the batch is always dynamic.

    Args:
        weights: what `xcite.weights.open_weights` gives; the metadata's preprocessing, class names
            and provenance go into the bundle.
        out: the bundle's folder; an earlier bundle there is replaced.
        options: None for a float32 OpenVINO bundle of the size that the weights were trained for.
        called: what messages call the weights.
        say: called with one line per step.

    Returns:
        What was written to ``bundle.json``.

    Raises:
        XciteError: options that the model does not support, disagreement with the engine, or too
            large a loss of accuracy; nothing of the new bundle is left then. Where the machine is
            to choose, only if that is so of every way.
    """
    options = options or ExportOptions()
    architecture, metadata = weights.architecture, weights.metadata
    if not architecture.num_classes and (options.validation or options.precision == "int8"):
        raise XciteError(
            f"{called} has no classifier, so no accuracy can be measured: leave --validation out, "
            "and int8, which needs it"
        )
    if options.precision == "int8" and not graph.bears_int8(architecture):
        raise XciteError("int8 is made for XCiT; export other models in f32 or bf16")
    names = metadata.class_names or []
    if names and len(names) != architecture.num_classes:
        raise XciteError(
            f"{len(names)} class names for {architecture.num_classes} classes; check the weights"
        )
    if not installed():
        raise XciteError(
            "every export is compared with an engine and none is installed; "
            "pip install 'xcite[torch]' or 'xcite[paddle]'"
        )
    candidates = ways(options, installed=installed())
    paddle = any(way.format == "paddle" for way in candidates)
    name = options.engine or ("paddle" if paddle else None)
    opened = on_engine(weights, name, called=called, classifier=False)
    for note in (*opened.notes, *_notes(architecture, names, called)):
        say(noted(note))
    assert isinstance(opened.classifier, EngineClassifier)
    reference = opened.classifier.engine
    preprocessing = opened.preprocessing
    size = options.input_size(sides(preprocessing.size))
    if size is not None:
        square = isinstance(preprocessing.size, int)
        preprocessing = preprocessing.at(max(size) if square else size)
        if options.validation is not None and size != sides(preprocessing.size):
            raise XciteError(
                "accuracy is measured on the whole of what is cut out, and this oblong would be "
                "the middle of a square; export it without --validation"
            )
    pixels, origin = agreement.pictures(options.pictures, preprocessing, size, agreement.PICTURES)
    say(
        tr(
            "compares with the {engine} engine on {pictures} pictures ({origin})",
            engine=reference.name,
            pictures=len(pixels),
            origin=origin,
        )
    )
    plain = BundleInfo(
        format=candidates[0].format,
        precision=candidates[0].precision,
        model=metadata.variant,
        architecture=describe(architecture),
        size=size,
        preprocessing=preprocessing,
        class_names=names,
        outputs=["logits" if architecture.num_classes else "embedding"],
        agreement={},
        provenance={**metadata.provenance, "recipe_hash": metadata.recipe_hash},
        versions={
            "xcite": __version__,
            "python": platform.python_version(),
            **versions_of(*PACKAGES),
        },
    )

    def make(folder: Path, way: Way) -> Made:
        info = plain.model_copy(update={"format": way.format, "precision": way.precision})
        outputs = _write_program(folder, weights, reference, info, options, say)
        info = info.model_copy(update={"outputs": outputs})
        seal_folder(folder, info)
        predictor = Predictor(folder, runtime=way.runtime)
        report = _compare(predictor, reference, pixels, way.precision)
        report["origin"] = origin
        say(_agreement(report))
        return Made(info.model_copy(update={"agreement": report}), predictor)

    def checked(made: Made) -> Made:
        if options.validation is None:
            return made
        classifiers: dict[str, Classifier] = {
            "before": opened.classifier,
            "after": made.predictor,
        }
        accuracy = _measure(classifiers, made.info, options.validation, options.max_drop)
        say(
            tr(
                "top-1 {before:.2f} % before, {after:.2f} % after, on {pictures} pictures",
                **{key: accuracy[key] for key in ("before", "after", "pictures")},
            )
        )
        return made._replace(info=made.info.model_copy(update={"accuracy": accuracy}))

    def left_out(way: Way) -> str | None:
        return hopeless(way, options, architecture, reference.name)

    with whole_bundle(out) as folder:
        if not options.automatic:
            return seal_folder(folder, checked(make(folder, candidates[0])).info)
        images = normalise(pixels, preprocessing)
        return seal_folder(
            folder, take_fastest(folder, candidates, left_out, make, checked, images, say)
        )


def _write_program(
    folder: Path,
    weights: WeightFile,
    reference: Engine,
    info: BundleInfo,
    options: ExportOptions,
    say: Callable[[str], None],
) -> list[str]:
    """Write the program's files; returns the names of its outputs."""
    program = folder / PROGRAMS[info.format]
    if info.format == "paddle":
        outputs = reference.save_program(program.with_suffix(""), size=info.size)
        config = paddleclas.inference_config(info)
        if isinstance(config, str):
            say(noted(config))
        else:
            paddleclas.write(config, folder)
        return outputs
    proto = graph.build(
        weights.tensors,
        weights.architecture,
        size=info.size,
        opset=options.opset or graph.OPSET,
        half=info.precision == "f16",
        bf16=info.precision in ("bf16", "int8"),
        name=info.model,
    )
    if info.format == "onnx":
        write_onnx(proto, program)
    else:
        calibration = None
        if info.precision == "int8":
            calibration = _calibration(str(options.pictures), info.preprocessing, info.size)
            say(tr("calibrates on {count} pictures", count=len(calibration)))
        _write_openvino(proto, program, calibration)
    return [output.name for output in proto.graph.output]


def _notes(architecture: Architecture, names: Sequence[str], called: str) -> list[str]:
    """What the bundle's answers are, where a person might take them for something else."""
    if not architecture.num_classes:
        width = architecture.num_features
        return [f"{called} has no classifier: the bundle gives embeddings of {width} numbers"]
    if not names:
        return [
            f"{called} does not name its {architecture.num_classes} classes: the answers are "
            "numbers; --classes names them"
        ]
    return []


def _calibration(
    pictures: str, preprocessing: Preprocessing, size: tuple[int, int] | None
) -> list[np.ndarray]:
    from xcite.export.quantization import CALIBRATION_PICTURES

    pixels, _ = agreement.pictures(pictures, preprocessing, size, CALIBRATION_PICTURES)
    return [normalise(picture[None], preprocessing) for picture in pixels]


def _write_openvino(proto: Any, program: Path, calibration: list[np.ndarray] | None) -> None:
    try:
        openvino = import_openvino()
    except ImportError as error:
        raise XciteError("--format openvino needs OpenVINO: pip install 'xcite[deploy]'") from error
    with tempfile.TemporaryDirectory(dir=program.parent) as aside:
        source = Path(aside) / "model.onnx"
        write_onnx(proto, source)
        core = openvino.Core()
        core.set_property({"ENABLE_MMAP": False})  # so that the folder can be removed
        converted = core.read_model(source)
        if calibration is not None:
            from xcite.export.quantization import quantise

            converted = quantise(converted, calibration)
        openvino.save_model(converted, program, compress_to_fp16=False)


def _compare(
    predictor: Predictor, reference: Engine, pixels: np.ndarray, precision: str
) -> dict[str, Any]:
    images = predictor.images(pixels)
    inputs = [images]
    if predictor.info.size is None:  # another, oblong size must do as well
        inputs.append(images[:2, :, : images.shape[2] * 3 // 4 + 1])
    expected = [agreement.reference_logits(reference, part) for part in inputs]
    found = []
    for part in inputs:
        predictor.run(part)  # the second answer counts: a runtime may keep what it must not
        found.append(predictor.run(part)[predictor.info.answer])
    return agreement.compare(
        expected, found, precision, reference.name, answer=predictor.info.answer
    )


def _agreement(report: dict[str, Any]) -> str:
    """What was found, in a line."""
    numbers = {"difference": report["largest_difference"], "largest": report["largest_logit"]}
    if "top1_agreement" not in report:
        return tr("embeddings differ by {difference:.2g} of {largest:.3g} at most", **numbers)
    return tr(
        "logits differ by {difference:.2g} of {largest:.3g} at most, top-1 agrees on "
        "{agreement:.0%}",
        **numbers,
        agreement=report["top1_agreement"],
    )


def _measure(
    classifiers: dict[str, Classifier], info: BundleInfo, validation: str, max_drop: float
) -> dict[str, Any]:
    from xcite.data.pipeline import EvaluationLoader
    from xcite.evaluation.evaluate import evaluate
    from xcite.runtime.classes import open_labelled

    labelled = open_labelled(
        validation,
        info.class_names or None,
        info.architecture["num_classes"],
        channels=info.preprocessing.channels,
    )
    loader = EvaluationLoader(
        labelled.source, info.preprocessing, batch=VALIDATION_BATCH, workers=0
    )
    result = evaluate(classifiers, loader, info.preprocessing, labelled.class_names)
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
