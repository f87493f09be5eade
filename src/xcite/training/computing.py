"""How a run computes: its precision, and its choices among exact alternatives.

Both are settled on the machine that begins the run and saved in its recipe, so that it resumes
exactly.
"""

from collections.abc import Callable
from pathlib import Path

from xcite import recipe as recipes
from xcite.choices import Choices
from xcite.cost import multiply_adds
from xcite.engines import create_engine, engine_package
from xcite.engines.interface import Engine
from xcite.errors import XciteError
from xcite.families import Architecture
from xcite.language import tr
from xcite.processor import this_processor
from xcite.recipe import Recipe
from xcite.training.run_folder import RunFolder
from xcite.tuning import profile
from xcite.tuning.knobs import Work, knobs
from xcite.tuning.search import search
from xcite.tuning.step import Timed

TUNING_SECONDS = 60.0
# Multiply-adds of a run that takes half an hour on two cores: tuning has earned its minute then.
LONG_RUN = 2e14
EMULATED = 20  # times as slow as float32, measured on Zen 3: see docs/performance.md


def settle_precision(recipe: Recipe, run: Path | None = None) -> tuple[Recipe, list[str]]:
    """Say which precision "auto" is on this machine.

    Args:
        run: folder of a run that was begun before, whose precision and choices stay.

    Returns:
        The recipe without "auto", and notes for people.
    """
    begun = _begun(run)
    if begun is not None:
        if recipe.run.precision == "auto" and begun.run.precision != "auto":
            recipe = recipes.with_values(recipe, "run", precision=begun.run.precision)
        if recipe.run.choices is None and begun.run.choices is not None:
            recipe = recipes.with_values(recipe, "run", choices=begun.run.choices)
    fastest = engine_package(recipe.run.engine).Engine.fastest_precision(recipe.run.device)
    if recipe.run.precision == "auto":
        return recipes.with_values(recipe, "run", precision=fastest), []
    processor = this_processor()
    if recipe.run.precision == "bf16" and fastest == "float32" and processor.known:
        return recipe, [
            f"{processor.name} has no bfloat16 instructions ({processor.instruction_set}): bf16 is "
            f"imitated, and a step takes about {EMULATED} times as long as in float32; set "
            "run.precision to auto"
        ]
    return recipe, []


def engine_for(
    recipe: Recipe, architecture: Architecture, pictures: int, *, say: Callable[[str], object]
) -> tuple[Engine, Recipe]:
    """The engine of a run, and the recipe with the choices that it computes by.

    Args:
        pictures: of an epoch.
        say: tells people what is looked up or measured.

    Raises:
        XciteError: the engine is missing, or cannot do what the recipe asks for here.
    """
    run = recipe.run
    engine = create_engine(
        run.engine,
        architecture,
        seed=run.seed,
        precision=run.precision,
        operators=run.operators,
        attention=run.attention,
        choices=run.choices,
        activation_checkpointing=run.activation_checkpointing,
        sync_batch_norm=run.sync_batch_norm,
        compile=run.compile,
        device=run.device,
    )
    if run.choices is not None and run.choices.compiled and not engine.choices.compiled:
        say(
            tr(
                "this run computes with compiled operators, which cannot be made here: from now on "
                "numbers differ from theirs by rounding"
            )
        )
    if run.choices is None:
        engine.choose(_chosen(engine, recipe, architecture, pictures, say))
    return engine, recipes.with_values(recipe, "run", choices=engine.choices)


def _chosen(
    engine: Engine,
    recipe: Recipe,
    architecture: Architecture,
    pictures: int,
    say: Callable[[str], object],
) -> Choices:
    """Those of the profile, or found now if the run is long, or the processor's default."""
    seen, run = recipe.preprocessing, recipe.run
    batch = recipe.optim.batch // recipe.optim.accumulate // engine.world_size
    work = Work(
        architecture,
        run.engine,
        batch,
        seen.height,
        seen.width,
        run.precision,
        attention=run.attention,
    )
    as_built = run.operators == "plain" or run.compile
    if run.tune == "off" or as_built or not engine.on_cpu or not knobs(work):
        return engine.choices
    found = profile.look_up(work)
    if found is not None:
        say(tr("computes as tuned for this machine; xcite tune --show says how"))
        return found
    macs = 3 * multiply_adds(architecture, seen.height, seen.width, form="usual")
    if engine.world_size > 1 or macs * pictures * recipe.optim.epochs < LONG_RUN:
        return engine.choices
    say(tr("a long run: looking for its fastest way of computing here, for a minute at most"))
    best = search(engine.choices, knobs(work), Timed(work), limit=TUNING_SECONDS)
    profile.keep(work, best)
    say(
        tr(
            "found in {seconds:.0f} s, {gain:.2f} times as fast as untuned; run.tune: off leaves "
            "that out",
            seconds=best.seconds,
            gain=best.before / best.after,
        )
    )
    return best.choices


def _begun(run: Path | None) -> Recipe | None:
    if run is None or not RunFolder(run).recipe.is_file():
        return None
    try:
        return recipes.load(str(RunFolder(run).recipe))
    except XciteError:  # said where the run is opened
        return None
