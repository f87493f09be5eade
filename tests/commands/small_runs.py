"""The command line with settings that make a run of `digits` small."""

from xcite.cli import main

SMALL = [
    "model.embed_dim=16",
    "model.depth=1",
    "model.num_heads=2",
    "optim.epochs=2",
    "optim.batch=256",
    "optim.warmup_epochs=1",
    "run.log_every=1",
]


def run(*arguments: str) -> int:
    try:
        main([*map(str, arguments)])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def answered(capsys, *arguments):
    """Exit code, output, errors of the command."""
    code = run(*arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def small(*more: str) -> list[str]:
    return [part for setting in (*SMALL, *more) for part in ("--set", setting)]
