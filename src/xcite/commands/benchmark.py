"""`xcite benchmark`: images per second, memory and multiply-adds of any variant on this machine."""

import typer

from xcite.commands.printing import say, say_json

app = typer.Typer(add_completion=False)


@app.command()
def benchmark(
    model: str = typer.Argument("xcit_nano_12_p8", help="Architecture, see `xcite models`."),
    engine: str = typer.Option("paddle", help="paddle or torch."),
    device: str = typer.Option("auto", help="What to compute on: auto, cpu, gpu, cuda:1, ..."),
    precision: str = typer.Option("float32", help="float32 or bf16."),
    operators: str = typer.Option("fast", help="fast or plain."),
    attention: str = typer.Option("auto", help="auto, usual or covariance."),
    batch: int = typer.Option(16, min=1, help="Pictures at a time."),
    size: tuple[int, int] = typer.Option((224, 224), help="Height and width in pixels."),
    train: bool = typer.Option(False, "--train", help="Time training steps, not forward passes."),
    compile: bool = typer.Option(False, "--compile", help="torch.compile; PyTorch only."),
    checkpointing: bool = typer.Option(
        False, "--checkpointing", help="Recompute activations in the backward pass."
    ),
    threads: int = typer.Option(None, min=1, help="Compute threads; all cores by default."),
    repeats: int = typer.Option(10, min=2, help="Timed repetitions."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Measure images per second with quartiles, peak memory, GMACs and the share of the peak."""
    from xcite import variants
    from xcite.evaluation.throughput import measure

    result = measure(
        variants.find(model),
        engine=engine,
        batch=batch,
        height=size[0],
        width=size[1],
        train=train,
        repeats=repeats,
        precision=precision,
        operators=operators,
        attention=attention,
        activation_checkpointing=checkpointing,
        compile=compile,
        threads=threads,
        device=device,
    )
    if as_json:
        say_json(result.to_json())
        return
    low, middle, high = result.images_per_second
    memory = "unknown" if result.peak_memory is None else f"{result.peak_memory:.0f} MiB"
    say(
        f"{model} on {engine}, {precision}, {'training step' if train else 'forward'}, "
        f"batch {batch}, {size[0]} x {size[1]}",
        f"images/s     {middle:.1f}  (quartiles {low:.1f} to {high:.1f}, {repeats} repetitions)",
        f"peak memory  {memory} above the process before the model",
        f"GMACs        {result.gmacs:.2f} per image forward",
        f"of the peak  {result.peak_fraction:.0%} of {result.matrix_product_gmacs:.0f} GMAC/s, "
        "the best of large linear maps here",
    )
