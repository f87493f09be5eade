"""What a user may name as a model: a run folder, a weights file, a published name or a bundle."""

from dataclasses import dataclass
from pathlib import Path

from xcite.errors import XciteError
from xcite.evaluation.evaluate import Classifier, EngineClassifier
from xcite.preprocessing import Preprocessing


@dataclass(frozen=True)
class Opened:
    """A model ready to be asked.

    Attributes:
        class_names: None when the weights do not say.
        on: what runs it, in words.
    """

    classifier: Classifier
    class_names: list[str] | None
    preprocessing: Preprocessing
    on: str


def open_model(source: str, engine: str | None = None) -> Opened:
    """Open ``source`` on an engine (default: paddle, or the one that is installed) or as a bundle.

    Raises:
        XciteError: nothing there, unreadable, or ``engine`` given for a bundle.
    """
    if (Path(source) / "bundle.json").is_file():
        if engine:
            raise XciteError(f"{source} is a bundle and runs without an engine; leave --engine out")
        from xcite.deployment.predictor import Predictor

        predictor = Predictor(source, mode="throughput")
        return Opened(
            predictor,
            predictor.class_names or None,
            predictor.preprocessing,
            f"{predictor.runtime}, {predictor.precision}",
        )
    from xcite.engines import create_engine, installed
    from xcite.weights import open_weights

    file = open_weights(source)
    if engine is None:
        if not installed():
            raise XciteError("no engine is installed: pip install 'xcite[paddle]'")
        engine = installed()[0]
    if not file.architecture.num_classes:
        raise XciteError(f"{source} has no classifier: it gives features, not classes")
    made = create_engine(engine, file.architecture)
    made.load_weights(file.tensors)
    preprocessing = file.metadata.preprocessing
    if preprocessing is None:
        channels = file.architecture.in_chans
        if channels not in (1, 3):
            raise XciteError(f"{source} takes {channels} channels and does not say what they are")
        preprocessing = Preprocessing() if channels == 3 else Preprocessing(mean=(0.5,), std=(0.5,))
    return Opened(EngineClassifier(made), file.metadata.class_names, preprocessing, engine)
