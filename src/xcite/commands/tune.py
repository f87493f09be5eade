"""`xcite tune`: the fastest of exact alternatives on this machine, found and remembered."""

from typing import Literal

import typer

from xcite.choices import Choices
from xcite.commands.printing import say, say_json
from xcite.errors import XciteError
from xcite.language import tr
from xcite.machine import is_temporary
from xcite.processor import this_processor

app = typer.Typer(add_completion=False)


@app.command()
def tune(
    model: str = typer.Argument("xcit_nano_12_p8", help="Architecture, see `xcite models`."),
    engine: str = typer.Option("paddle", help="paddle or torch."),
    precision: str = typer.Option("auto", help="auto, float32 or bf16."),
    batch: int = typer.Option(16, min=1, help="Pictures at a time."),
    size: tuple[int, int] = typer.Option((224, 224), help="Height and width in pixels."),
    forward: bool = typer.Option(
        False, "--forward", help="For forward passes, not training steps."
    ),
    seconds: float = typer.Option(60.0, min=1.0, help="Stop looking after so long."),
    show: bool = typer.Option(False, "--show", help="Print what this machine's profile holds."),
    forget: bool = typer.Option(False, "--forget", help="Delete this machine's profile."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Find the fastest way of computing here; training looks it up."""
    from xcite.tuning import profile

    if forget or show:
        path = profile.profile_file()
        if forget and path is not None:
            path.unlink(missing_ok=True)
        if show:
            _show(as_json)
        return
    from xcite import variants
    from xcite.engines import engine_package
    from xcite.tuning.knobs import Work, knobs
    from xcite.tuning.search import search
    from xcite.tuning.step import Timed

    if precision == "auto":
        precision = engine_package(engine).Engine.fastest_precision("auto")
    kind: Literal["train", "forward"] = "forward" if forward else "train"
    work = Work(variants.find(model), engine, batch, *size, precision, kind)
    if not knobs(work):
        raise XciteError(f"{model} has one way of computing: there is nothing to tune")
    timed = Timed(work)
    found = search(timed.choices, knobs(work), timed, limit=seconds)
    entry = profile.keep(work, found)
    path = profile.profile_file()
    if path is None or is_temporary(path) or not path.is_file():
        say(
            tr(
                "not kept, as no folder for it can be written to; set XDG_CACHE_HOME to one and "
                "tune again"
            ),
            err=True,
        )
    if as_json:
        say_json(entry.to_json())
        return
    say(
        tr(
            "{gain:.2f} times as fast as untuned, found in {seconds:.0f} s with {count} "
            "measurements",
            gain=found.before / found.after,
            seconds=found.seconds,
            count=found.measured,
        ),
        *_in_words(found.choices),
    )


def _show(as_json: bool) -> None:
    from xcite.tuning import profile

    entries = profile.entries()
    if as_json:
        machine = profile.machine()
        say_json({"machine": machine, "entries": [entry.to_json() for entry in entries]})
        return
    processor = this_processor()
    say(
        f"{processor.name} ({processor.instruction_set}): {profile.profile_file()}"
        if entries
        else tr("nothing was tuned on this machine yet: xcite tune MODEL")
    )
    for entry in entries:
        work = entry.work
        say(
            "{engine} {version}, {precision}, {kind}, batch {batch}, {height} x {width}".format(
                **work
            )
            + f", {entry.before / entry.after:.2f}",
            *_in_words(entry.choices),
        )


def _in_words(choices: Choices) -> list[str]:
    return [f"  {name:18}{value}" for name, value in choices.model_dump().items()]
