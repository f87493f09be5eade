"""The command table; each command lives in `xcite.commands` and is imported when it is called."""

import contextlib
import importlib
import inspect
import io
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from xcite import language
from xcite.control_characters import visible, visible_lines
from xcite.errors import XciteError
from xcite.machine import is_temporary, provide_home

# name: (module below xcite.commands, one line of help)
COMMANDS = {
    "models": ("models", "List architectures and published models."),
    "prepare": ("prepare", "Turn official archives into picture folders or shards."),
    "train": ("train", "Train a model as a recipe says."),
    "slurm": ("slurm", "Write a batch script for a run on a cluster."),
    "status": ("status", "Say where a run stands and how to go on."),
    "evaluate": ("evaluate", "Measure top-1, top-5 and loss on pictures."),
    "predict": ("predict", "Name what is on pictures."),
    "align": ("align", "Prove that both engines compute the same."),
    "convert": ("convert", "Translate weights between dialects."),
    "inspect": ("inspect", "Say what a weights file or a teacher cache holds."),
    "weights": ("weights", "List or fetch published weights."),
    "teach": ("teach", "Compute a teacher's answers once, for many students."),
    "fit-head": ("fit_head", "Fit a classifier of your classes on a frozen network."),
    "export": ("export", "Make a checked bundle for CPU deployment."),
    "serve": ("serve", "Serve a bundle over HTTP with a page."),
    "draw": ("draw", "Draw attention maps or training curves."),
    "report": ("report", "Write one HTML page about a run."),
    "tune": ("tune", "Find the fastest way of computing on this machine."),
    "benchmark": ("benchmark", "Measure images per second, memory and GMACs."),
}


class _Table(TyperGroup):
    """Imports a command's module only when that command runs or asks for its own help.

    (typer carries its own copy of click and does not name its types publicly, hence `Any`.)
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"xcite.commands.{COMMANDS[cmd_name][0]}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        _translate(command, ctx)
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section(language.tr("Commands")):
            rows = [(name, language.tr(text)) for name, (_, text) in COMMANDS.items()]
            formatter.write_dl(rows)

    def get_help(self, ctx: Any) -> str:
        _translate(self, ctx)
        return super().get_help(ctx)


def _translate(command: Any, ctx: Any) -> None:
    """Put a command's help into the language in use; names and defaults stay as they are."""
    if language.language() == "en":
        return
    if command.help:
        command.help = language.tr(inspect.cleandoc(command.help))
    for parameter in (*command.params, command.get_help_option(ctx)):
        if parameter.help:
            parameter.help = language.tr(parameter.help)
        argument = parameter.param_type_name == "argument"
        parameter.rich_help_panel = language.tr("Arguments") if argument else language.tr("Options")
    for each in getattr(command, "commands", {}).values():
        _translate(each, ctx)


def _choose(wish: str | None) -> str | None:
    if wish is not None and wish not in language.LANGUAGES:
        raise typer.BadParameter(f"one of {', '.join(language.LANGUAGES)}")
    language.choose(wish)
    return wish


def _version(wanted: bool) -> None:
    if wanted:
        from xcite.installed import versions

        for name, number in versions().items():
            typer.echo(f"{name} {number}")
        raise typer.Exit


app = typer.Typer(
    cls=_Table,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    ctx: typer.Context,
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks of errors."),
    lang: str = typer.Option(
        None,
        metavar="en|zh",
        help="Language of messages and pictures; by default XCITE_LANG or the locale's.",
        is_eager=True,
        callback=_choose,
    ),
    version: bool = typer.Option(
        False,
        "--version",
        help="Show the versions of Xcite and of the engines and runtimes that are installed.",
        is_eager=True,
        callback=_version,
    ),
) -> None:
    """XCiT for PaddlePaddle and PyTorch: train, distil, convert, deploy."""


def _tell(error: Exception, said: str) -> None:
    print(f"xcite: {visible(language.translated(said))}", file=sys.stderr)


def main(
    arguments: list[str] | None = None, *, tell: Callable[[Exception, str], None] = _tell
) -> None:
    """Run the command line; the user's errors end in one line and exit code 2.

    Args:
        tell: says an error, which is given with its line.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    provide_home()
    command: Any = typer.main.get_command(app)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a Latin-1 terminal shows what it can
    try:
        if _INSTALL in arguments and is_temporary(Path.home()):
            raise OSError("no home folder can be written to")
        command(arguments, prog_name="xcite")
    except Exception as error:
        said = _in_words(error, arguments)
        if said is None:
            raise
        if "--debug" in arguments:
            print(visible_lines(traceback.format_exc()), file=sys.stderr)
        tell(error, said)
        sys.exit(2)
    finally:
        _flush()


# What libraries say, in exceptions of many types, when they get no memory for data or a thread.
_NO_MEMORY = (
    "can't start new thread",
    "Cannot allocate memory",
    "std::bad_alloc",
    "failed to map segment",
)


_INSTALL = "--install-completion"  # typer's own, which lets the system's errors through


def _in_words(error: Exception, arguments: list[str]) -> str | None:
    """What the user can mend; None for an error of the program, which ends in a traceback."""
    if isinstance(error, XciteError):
        return str(error)
    if isinstance(error, OSError) and _INSTALL in arguments:
        return (
            f"cannot install completion ({error}); put what `xcite --show-completion` prints "
            "where your shell reads it"
        )
    if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
        return (
            "memory ran out; lower optim.batch, data.workers or the model's size, or raise the "
            "limit (`ulimit -v` shows one)"
        )
    return None


def _flush() -> None:
    """Write what is still buffered; a reader such as `head` that has gone is no error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
