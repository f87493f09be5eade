"""`xcite fit-head`: a network that knows other classes becomes a teacher of yours."""

from pathlib import Path

import typer

from xcite.commands.printing import say
from xcite.language import noted, tr

app = typer.Typer(add_completion=False)


@app.command()
def fit_head(
    teacher: str = typer.Argument(help="A weights file, a run folder or a published name."),
    pictures: str = typer.Argument(help="Training pictures: a folder, an archive or a list."),
    out: Path = typer.Argument(help="The .safetensors file to write."),
    val: str = typer.Option(None, help="Pictures to measure the accuracy on."),
    size: int = typer.Option(None, min=1, help="Side of the input in pixels; else its own."),
    batch: int = typer.Option(32, min=1, help="Pictures at a time."),
    workers: int = typer.Option(0, min=0, help="Loader processes."),
    engine: str = typer.Option(None, help="paddle or torch; default: paddle where installed."),
    device: str = typer.Option("auto", help="What to compute on: auto, cpu, gpu, cuda:1, ..."),
    columns: str = typer.Option(None, help="Columns of path and label in a table."),
    weights_dir: Path = typer.Option(None, help="Folder of published files."),
) -> None:
    """Fit a linear classifier of the pictures' classes on a frozen network's features.

    The file serves as distill.teacher, and as weights of any other use.
    """
    import numpy as np
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from xcite.data.findings import describe
    from xcite.data.sources import Source, has_split, open_source
    from xcite.errors import XciteError
    from xcite.runtime.classifier import EngineClassifier
    from xcite.runtime.opening import on_engine
    from xcite.training.teachers import head
    from xcite.training.teachers.facts import is_program
    from xcite.weights import open_weights, save_weights

    if out.suffix != ".safetensors":
        raise XciteError(f"{out}: the file's name must end in .safetensors")
    if is_program(teacher):
        raise XciteError(
            f"{teacher} is a program, whose last layer cannot be exchanged; give the weights it "
            "was made of, or let it teach its own classes (distill.teacher)"
        )
    file = open_weights(teacher, weights_dir=weights_dir)
    opened = on_engine(file, engine, called=teacher, classifier=False, device=device)
    assert isinstance(opened.classifier, EngineClassifier)  # weights are opened, no bundle
    network, preprocessing = opened.classifier.engine, opened.preprocessing
    if size is not None:
        preprocessing = preprocessing.at(size)
    channels = preprocessing.channels
    train = open_source(pictures, channels=channels, columns=columns)
    if val is None and has_split(pictures, "validation", columns=columns):
        val = pictures
    say(*map(noted, opened.notes), *(tr("training: {line}", line=line) for line in describe(train)))
    held = None
    if val is not None:
        held = open_source(
            val, classes=train.class_names, channels=channels, split="validation", columns=columns
        )
        say(*(tr("validation: {line}", line=line) for line in describe(held)))

    def seen(source: Source) -> tuple[np.ndarray, np.ndarray]:
        bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            console=Console(stderr=True),
        )
        with bars:
            task = bars.add_task(tr("features"), total=len(source))
            return head.features_of(
                network,
                source,
                preprocessing,
                batch=batch,
                workers=workers,
                after_batch=lambda done: bars.advance(task, done),
            )

    found = head.fit(*seen(train), len(train.class_names))
    tensors, metadata = head.with_head(file, found, train.class_names, preprocessing, teacher)
    say(
        tr(
            "cross-validated top-1 {top1:.2f} %, C {strength:g}",
            top1=found.accuracy,
            strength=found.strength,
        )
    )
    if held is not None:
        features, labels = seen(held)
        right = (features @ found.weight.T + found.bias).argmax(1) == labels
        metadata.metrics["top1"] = round(100 * float(right.mean()), 2)
        say(tr("validation top-1 {top1:.2f} %", top1=metadata.metrics["top1"]))
    save_weights(out, tensors, metadata)
    say(tr("wrote {files}", files=str(out)))
