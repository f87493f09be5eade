"""`xcite draw`: attention maps and training curves."""

from pathlib import Path

import typer

from xcite.commands.printing import say
from xcite.language import tr

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Draw attention maps or curves.")


@app.command()
def attention(
    source: str = typer.Argument(..., help="Weights file, published name, run folder or bundle."),
    picture: Path = typer.Argument(..., help="Picture file."),
    out: Path = typer.Option(None, help="PNG to write; by default PICTURE-attention.png, here."),
    size: int = typer.Option(
        None, min=1, help="Side of the input in pixels; with --whole the shorter side."
    ),
    whole: bool = typer.Option(False, "--whole", help="Keep the whole picture, cut nothing off."),
    occlusion: bool = typer.Option(True, help="Hide places one by one as a second opinion."),
    engine: str = typer.Option(None, help="paddle or torch; by default the first installed."),
    device: str = typer.Option("auto", help="What to compute on: auto, cpu, gpu, cuda:1, ..."),
) -> None:
    """Draw where a model looks: class attention per head and layer, XCA channel maps, occlusion.

    Writes OUT.png, OUT-channels.png (not for a bundle) and OUT.npz with all the numbers.
    """
    from xcite.data.decoding import decode
    from xcite.figures import attention as figures
    from xcite.runtime.opening import open_model

    model = open_model(source, engine, device)
    for note in model.notes:
        say(tr("note: {note}", note=note), err=True)
    channels = model.preprocessing.channels
    pixels = decode(picture, channels=channels, origin=str(picture))
    shown = figures.input_picture(pixels, model, size=size, whole=whole)
    explanation = figures.explain(model, shown, occlusion=occlusion)

    out = out or Path(f"{picture.stem}-attention.png")
    stem = out.with_suffix("") if out.suffix.lower() == ".png" else out
    written = [stem.with_name(f"{stem.name}.png")]
    figures.draw_attention(explanation, written[0])
    if explanation.channels:
        written.append(stem.with_name(f"{stem.name}-channels.png"))
        figures.draw_channels(explanation, written[1])
    written.append(stem.with_name(f"{stem.name}.npz"))
    explanation.save(written[-1])
    share = 100 * explanation.probabilities.max()
    files = ", ".join(map(str, written))
    say(f"{explanation.label} {share:.1f} %; {tr('wrote {files}', files=files)}")
    if not explanation.channels:
        say(tr("a bundle gives class attention only; for XCA's channel maps draw from weights"))


@app.command()
def curves(
    runs: list[Path] = typer.Argument(..., help="Run folders."),
    out: Path = typer.Option(Path("curves.png"), help="PNG to write."),
) -> None:
    """Draw loss, accuracy and learning rate of several runs over each other."""
    from xcite.figures.curves import draw_curves
    from xcite.training.run_folder import RunFolder

    folders = [RunFolder.open(run) for run in runs]
    # The shortest names that tell the runs apart.
    names = [folder.path.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    draw_curves({name: f.rows() for name, f in zip(names, folders, strict=True)}, out)
    say(tr("wrote {files}", files=out))
