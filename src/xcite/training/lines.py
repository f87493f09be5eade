"""The lines that a run prints, in the language in use."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xcite.language import tr
from xcite.training.checkpoint import Position


def begins(folder: Path, engine: str, epoch: int, epochs: int, steps: int, resumed: bool) -> str:
    """What is going to happen; ``epoch`` is counted from 1."""
    place = {"run": folder, "engine": engine, "epoch": epoch, "epochs": epochs, "steps": steps}
    if resumed:
        return tr(
            "{run} resumed on {engine}: epoch {epoch} of {epochs}, {steps} steps each", **place
        )
    return tr("{run} begins on {engine}: epoch {epoch} of {epochs}, {steps} steps each", **place)


def is_complete(folder: Path, epochs: int) -> str:
    return tr("{run} is complete: {epochs} epochs are done", run=folder, epochs=epochs)


def epoch(row: dict[str, Any]) -> str:
    """An epoch's row of metrics.jsonl."""
    return tr(
        "Epoch [{epoch}] loss {loss:.4f}, lr {lr:.3g}, {seconds:.1f} s of training",
        **{key: row[key] for key in ("epoch", "loss", "lr", "seconds")},
    )


def left_out(counts: Mapping[str, tuple[int, int]], listed: str) -> str:
    """How many pictures cannot be read, of how many, in each part; ``listed`` is the file."""
    parts = [
        tr("{count:,} of {all:,} pictures of data.{part}", count=count, all=every, part=part)
        for part, (count, every) in counts.items()
    ]
    return tr(
        "cannot be read and are left out: {pictures}; see {file}",
        pictures=tr(", ").join(parts),
        file=listed,
    )


def stopped(position: Position, steps: int, command: str) -> str:
    """The run was interrupted and goes on with ``command``."""
    return tr(
        "stopped after step {step} of {steps} in epoch {epoch}; go on with: {command}",
        step=position.step,
        steps=steps,
        epoch=position.epoch + 1,
        command=command,
    )


def best(position: Position, file: Path) -> str:
    """The best accuracy of a finished run, and its weights."""
    return tr(
        "best: top-1 {top1:.2f} %, top-5 {top5:.2f} % after epoch {epoch}: {file}",
        top1=position.best,
        top5=position.best_top5,
        epoch=position.best_epoch,
        file=file,
    )
