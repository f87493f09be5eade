"""What one side of an alignment computes."""

from dataclasses import dataclass, field

import numpy as np

from xcite import canonical
from xcite.alignment.trial import Trial
from xcite.engines import NAMES, create_engine
from xcite.engines.interface import Engine
from xcite.engines.operators import OPERATORS
from xcite.engines.pixels import model_input
from xcite.errors import XciteError

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Side:
    """Who computes, as a user writes it: "torch", or "torch:plain".

    Attributes:
        operators: "fast" or "plain"; None: as the recipe says.
    """

    engine: str
    operators: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Side":
        """The side that a name such as "torch:plain" stands for.

        Raises:
            XciteError: unknown engine or operators.
        """
        engine, colon, operators = text.partition(":")
        if engine not in NAMES:
            raise XciteError(f"unknown engine {engine!r}; choose {' or '.join(NAMES)}")
        if colon and operators not in OPERATORS:
            raise XciteError(
                f"unknown operators {operators!r} in {text!r}; choose {' or '.join(OPERATORS)}"
            )
        return cls(engine, operators or None)

    @property
    def name(self) -> str:
        return self.engine if self.operators is None else f"{self.engine}:{self.operators}"

    def create(self, given: Trial) -> Engine:
        """This side's engine with the trial's weights.

        Raises:
            XciteError: the engine is not installed, or the weights do not fit.
        """
        engine = create_engine(
            self.engine,
            given.architecture,
            operators=self.operators or given.run.operators,
            attention=given.run.attention,
        )
        engine.load_weights(given.weights)
        return engine


@dataclass
class Measured:
    """What a side computed, or what a dump holds.

    Attributes:
        activations: output of each named part in evaluation mode, see `Engine.activations`.
        activations_train: the same with the batch's own statistics.
        loss: before the first step.
        gradients: of that loss, by canonical parameter name.
        losses: before each step.
        layers: canonical tensor to its layer group, as the data pass through them.
        step: the change of each parameter in the first optimiser step, in learning rates.
        statistics: BatchNorm's running means and variances after that step.
    """

    name: str
    activations: Arrays = field(default_factory=dict)
    activations_train: Arrays = field(default_factory=dict)
    loss: float | None = None
    gradients: Arrays = field(default_factory=dict)
    step: Arrays = field(default_factory=dict)
    statistics: Arrays = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    layers: dict[str, str] = field(default_factory=dict)


def measure(side: Side, given: Trial) -> Measured:
    """Run the trial on a side.

    Raises:
        XciteError: the engine is not installed, or the weights do not fit.
    """
    engine = side.create(given)
    engine.start_training(given.optim, given.distill, given.preprocessing, frozen=given.frozen)
    first = given.batches[0]
    assert first.targets is not None
    found = measure_pass(
        side.name,
        engine,
        model_input(first, given.preprocessing),
        first.targets,
        paths=given.paths[0],
        teacher=given.answers[0],
    )
    before = engine.read_weights()
    for batch, scales, answers in zip(given.batches, given.paths, given.answers, strict=True):
        result = engine.train_step(
            [batch], learning_rate=given.learning_rate, paths=[scales], teacher=[answers]
        )
        found.losses.append(result.loss)
        if len(found.losses) == 1:
            for name, value in engine.read_weights().items():
                if canonical.is_parameter(name):
                    moved = value.astype(np.float64) - before[name]
                    found.step[name] = moved / given.learning_rate
                elif not name.endswith("num_batches_tracked"):
                    found.statistics[name] = value
    return found


def measure_pass(
    name: str,
    engine: Engine,
    images: np.ndarray,
    targets: np.ndarray,
    *,
    paths: np.ndarray | None = None,
    teacher: np.ndarray | None = None,
) -> Measured:
    """Activations, loss and gradients of an engine that is ready to train; changes nothing.

    Args:
        images: normalised float32 (B, C, H, W).
        targets: float32 (B, K).
    """
    loss, gradients = engine.gradients(images, targets, paths=paths, teacher=teacher)
    return Measured(
        name,
        engine.activations(images),
        engine.activations(images, train=True),
        loss,
        gradients,
        layers=engine.architecture.layer_groups(),
    )
