"""`xcite convert`: weights from one ecosystem's names and layout to another's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import typer

from xcite.commands.printing import say
from xcite.errors import XciteError
from xcite.families import Architecture, XCiTArchitecture
from xcite.language import noted, tr
from xcite.randomness import generator
from xcite.runtime.classes import given_classes
from xcite.variants import find
from xcite.weights.convert import TIMM_HUB, Conversion
from xcite.weights.convert import convert as convert_file
from xcite.weights.opening import open_weights

app = typer.Typer(add_completion=False)

# Both files hold the same float32 numbers and run on one engine, so the logits are the same.
TOLERANCE = 0.0


@app.command()
def convert(
    source: str = typer.Argument(help="A weights file, a run folder or a published name."),
    target: Path = typer.Argument(help="The file to write; for timm-hub and -dcp the folder."),
    to: str = typer.Option(
        ...,
        "--to",
        help="xcite, official, timm, passl, ppcls, paddlevit; timm-hub, official-dcp, timm-dcp.",
    ),
    dialect: str = typer.Option(None, help="The source's dialect; recognised when not given."),
    extract: str = typer.Option(
        None, help="student, teacher, ema, weights or another part of a checkpoint."
    ),
    model: str = typer.Option(None, help="The architecture's name, when it is in doubt."),
    tokens_norm: bool = typer.Option(
        None, "--tokens-norm/--no-tokens-norm", help="What shapes do not show; see docs/weights.md."
    ),
    classes: str = typer.Option(
        None, help="Names of the classes: a file with a name a line, or imagenet."
    ),
    strict: bool = typer.Option(False, "--strict", help="Refuse tensors beside the model."),
    weights_dir: Path = typer.Option(None, help="Folder of published files."),
    check: bool = typer.Option(False, "--check", help="Compare logits of both files too."),
    engine: str = typer.Option("paddle", help="Engine of --check: paddle or torch."),
) -> None:
    """Translate weights between dialects; the new file is read back and compared exactly."""
    architecture: Architecture | None = None
    if model is not None or tokens_norm is not None:
        opened = open_weights(source, dialect=dialect, part=extract, weights_dir=weights_dir)
        read = opened.architecture
        if model is not None:
            architecture = find(model, num_classes=read.num_classes, in_chans=read.in_chans)
        if tokens_norm is not None:
            base = architecture or read
            if not isinstance(base, XCiTArchitecture):
                raise XciteError(f"--tokens-norm is for XCiT; this is {base.with_article}")
            architecture = replace(base, tokens_norm=tokens_norm)
    done = convert_file(
        source,
        target,
        to=to,
        dialect=dialect,
        part=extract,
        architecture=architecture,
        strict=strict,
        class_names=None if classes is None else lambda count: given_classes(classes, count),
        weights_dir=weights_dir,
    )
    kind = done.source.metadata.variant or done.source.architecture.title
    say(
        tr(
            "{file}: {kind}, {source} to {target}, part {part}, {tensors} tensors; read back and "
            "equal in every bit",
            file=done.path,
            kind=kind,
            source=done.source.dialect,
            target=done.to,
            part=done.source.part,
            tensors=done.tensors,
        ),
        *(f"  {noted(note)}" for note in done.source.metadata.provenance.get("notes", [])),
    )
    strides = done.source.architecture.fields().get("stem_strides")
    if done.to == TIMM_HUB:
        _say_timm_hub(done)
    if strides is not None and done.to != "xcite":
        note = f"{done.to} files do not say that the stem's strides are {strides}"
        say(f"  {noted(note)}")
    if check:
        say(_compare_logits(done, engine))


def _say_timm_hub(done: Conversion) -> None:
    metadata, classes = done.source.metadata, done.source.architecture.num_classes
    if metadata.preprocessing is None:
        note = "the source does not say how its pictures are prepared; the usual is written"
        say(f"  {noted(note)}")
    if classes and not metadata.class_names:
        say(f"  {noted(f'the {classes} classes have no names; --classes names them')}")
    code = f'timm.create_model("local-dir:{done.path}", pretrained=True)'
    say(tr("in Python: {code}", code=code))


def _compare_logits(done: Conversion, engine_name: str) -> str:
    """Run both files on one engine; they must answer the same."""
    from xcite.engines import create_engine

    architecture = done.source.architecture
    shape = (2, architecture.in_chans, 64, 64)
    images = generator(0, "convert --check").standard_normal(shape).astype(np.float32)
    engine = create_engine(engine_name, architecture)
    written = open_weights(done.path, architecture=architecture, dialect=done.dialect)
    answers = []
    for weights in (done.source.tensors, written.tensors):
        engine.load_weights(weights)
        answers.append(engine.predict(images))
    difference = float(np.max(np.abs(answers[0] - answers[1]), initial=0.0))
    if not difference <= TOLERANCE:
        raise XciteError(f"{done.path}: its logits differ by {difference:.3g} from the source's")
    return tr(
        "logits on {engine}: equal for {images} images of {height} x {width}",
        engine=engine_name,
        images=shape[0],
        height=shape[2],
        width=shape[3],
    )
