"""The command table; each command lives in `xcite.commands` and is imported when it is called."""

import importlib
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from xcite.errors import XciteError

# name: (module below xcite.commands, one line of help)
COMMANDS = {
    "models": ("models", "List architectures and published models."),
    "prepare": ("prepare", "Turn official archives into picture folders or shards."),
    "train": ("train", "Train a model as a recipe says."),
    "status": ("status", "Say where a run stands and how to go on."),
    "evaluate": ("evaluate", "Measure top-1, top-5 and loss on pictures."),
    "predict": ("predict", "Name what is on pictures."),
    "align": ("align", "Prove that both engines compute the same."),
    "convert": ("convert", "Translate weights between dialects."),
    "inspect": ("inspect", "Say what a weights file holds."),
    "weights": ("weights", "List or fetch published weights."),
    "teach": ("teach", "Compute a teacher's answers once, for many students."),
    "export": ("export", "Make a checked bundle for CPU deployment."),
    "serve": ("serve", "Serve a bundle over HTTP with a page."),
    "draw": ("draw", "Draw attention maps or training curves."),
    "report": ("report", "Write one HTML page about a run."),
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
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


app = typer.Typer(cls=_Table, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback()
def _options(
    ctx: typer.Context,
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks of errors."),
) -> None:
    """XCiT for PaddlePaddle and PyTorch: train, distil, convert, deploy."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors of the user's end in one line and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command: Any = typer.main.get_command(app)
    try:
        command(arguments, prog_name="xcite")
    except XciteError as error:
        if "--debug" in arguments:
            raise
        print(f"xcite: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
