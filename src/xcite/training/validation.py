"""The evaluation at the end of an epoch."""

from collections.abc import Callable

from rich.progress import Progress

from xcite.data.pipeline import EvaluationLoader
from xcite.engines.interface import Engine
from xcite.evaluation.accuracy import Accuracy
from xcite.evaluation.evaluate import evaluate
from xcite.language import tr
from xcite.runtime.classifier import EngineClassifier
from xcite.training.interruption import Stopped, StopRequest
from xcite.training.plan import Plan

# Starting a loader process takes as long as decoding about this many pictures.
PICTURES_PER_WORKER = 500


def is_due(prepared: Plan, epoch: int) -> bool:
    """Whether an evaluation follows ``epoch`` (counted from 1)."""
    recipe = prepared.recipe
    last = epoch == recipe.optim.epochs
    return prepared.validation is not None and (last or epoch % recipe.run.evaluate_every == 0)


def validate(
    prepared: Plan,
    engine: Engine,
    epoch: int,
    progress: Progress,
    stop: StopRequest,
    skipped: dict[str, str],
    *,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, Accuracy]:
    """Accuracy after ``epoch`` (counted from 1) on the plan's validation pictures.

    Args:
        skipped: takes up name and reason of the pictures that could not be decoded.
        after_batch: is called after each.

    Returns:
        Of "model" and, if there is a moving average, of "ema"; nothing where no evaluation is due.

    Raises:
        Stopped: a stop was asked for before the evaluation was done.
    """
    recipe, source = prepared.recipe, prepared.validation
    if source is None or not is_due(prepared, epoch):
        return {}
    loader = EvaluationLoader(
        source,
        recipe.preprocessing,
        batch=max(1, recipe.optim.batch // recipe.optim.accumulate // engine.world_size),
        workers=min(recipe.data.workers, len(source) // PICTURES_PER_WORKER),
        on_error=recipe.data.on_error,
        skip_limit=recipe.data.skip_limit,
        max_pixels=recipe.data.max_pixels,
        timeout=recipe.data.worker_timeout,
        rank=engine.rank,
        world_size=engine.world_size,
    )
    bar = progress.add_task(tr("validate"), total=len(source), note="")

    def batch_done(pictures: int) -> None:
        after_batch()
        progress.advance(bar, pictures * engine.world_size)
        # Several processes reduce together at the end, so none of them may leave before.
        if engine.world_size == 1 and stop.signal is not None:
            raise Stopped

    classes = len(prepared.class_names)
    classifiers = {"model": EngineClassifier(engine, classes=classes)}
    if recipe.optim.ema is not None:
        classifiers["ema"] = EngineClassifier(engine, ema=True, classes=classes)
    try:
        return evaluate(
            classifiers,
            loader,
            recipe.preprocessing,
            prepared.class_names,
            average=engine.average,
            processes=engine.world_size,
            after_batch=batch_done,
        )
    finally:
        skipped |= loader.skipped
