"""What a user may name as a model: a run folder, a weights file, a published name or a bundle."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from xcite.data.transforms import normalise
from xcite.engines import create_engine, installed
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing, in_pixels
from xcite.runtime.bundle import bundle_folder, require_classes
from xcite.runtime.classifier import Classifier, EngineClassifier
from xcite.runtime.predictor import Predictor, input_pixels
from xcite.variants import Architecture
from xcite.weights import WeightFile, open_weights


@dataclass(frozen=True)
class OpenedModel:
    """A model that is ready to predict.

    Attributes:
        class_names: None when the weights do not say.
        size: height and width of the only input it takes; None for any.
        on: what runs it, in words.
        notes: what a person should know, one line each.
    """

    classifier: Classifier
    architecture: Architecture
    preprocessing: Preprocessing
    class_names: list[str] | None
    size: tuple[int, int] | None
    on: str
    notes: list[str] = field(default_factory=list)

    def pixels(self, picture: np.ndarray) -> np.ndarray:
        """Resize and crop one decoded picture: uint8 (H, W, C), as the model will see it."""
        return input_pixels(picture, self.preprocessing, self.size)

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """float32 (B, K) of such pixels (B, H, W, C)."""
        return self.classifier.logits(normalise(pixels, self.preprocessing))


def open_model(source: str | Path, engine: str | None = None, device: str = "auto") -> OpenedModel:
    """Open ``source`` on an engine (default: paddle, or the one that is installed) or as a bundle.

    A file of a bundle stands for the bundle.

    Args:
        device: as in a recipe's ``run.device``.

    Raises:
        XciteError: nothing there, unreadable, no such device, or a bundle, which runs on the CPU
            without an engine, with either of the two.
    """
    bundle = bundle_folder(source)
    if bundle is None:
        return on_engine(open_weights(source), engine, called=str(source), device=device)
    if engine:
        raise XciteError(f"{bundle} is a bundle and runs without an engine; leave --engine out")
    if device not in ("auto", "cpu"):
        raise XciteError(f"{bundle} is a bundle and runs on the CPU; leave --device out")
    predictor = Predictor(bundle, mode="throughput")
    require_classes(predictor.info, predictor.bundle)
    return OpenedModel(
        predictor,
        predictor.info.built(),
        predictor.preprocessing,
        predictor.class_names or None,
        predictor.info.size,
        f"{predictor.runtime}, {predictor.precision}",
        list(predictor.notes),
    )


def on_engine(
    file: WeightFile,
    engine: str | None = None,
    *,
    called: str,
    classifier: bool = True,
    device: str = "auto",
) -> OpenedModel:
    """The model of a weights file on an engine; None takes paddle, or what is installed.

    Args:
        called: what messages call the file.
        classifier: refuse a file without one; else its "logits" are embeddings.
        device: as in a recipe's ``run.device``.

    Raises:
        XciteError: no engine is installed, no such device, or no classifier.
    """
    if engine is None:
        if not installed():
            raise XciteError("no engine is installed: pip install 'xcite[paddle]'")
        engine = installed()[0]
    if classifier and not file.architecture.num_classes:
        raise XciteError(
            f"{called} has no classifier: it gives features, not classes; `xcite export` makes a "
            "bundle of embeddings of it"
        )
    preprocessing, notes = preprocessing_of(file, called)
    made = create_engine(engine, file.architecture, device=device)
    made.load_weights(file.tensors)
    return OpenedModel(
        EngineClassifier(made),
        file.architecture,
        preprocessing,
        file.metadata.class_names,
        None,
        engine,
        notes,
    )


def preprocessing_of(file: WeightFile, called: str) -> tuple[Preprocessing, list[str]]:
    """How the file's pictures are prepared, and a note where that had to be assumed."""
    if file.metadata.preprocessing is not None:
        return file.metadata.preprocessing, []
    channels = file.architecture.in_chans
    assumed = Preprocessing.assumed(channels)
    values = "the usual mean and deviation" if channels == 3 else "a mean and deviation of 0.5"
    note = (
        f"{called} does not say how its pictures were prepared; "
        f"{in_pixels(assumed.size)} px and {values} are assumed"
    )
    return assumed, [note]
