"""`xcite serve`: a bundle over HTTP."""

from pathlib import Path

import typer

app = typer.Typer(add_completion=False)


@app.command()
def serve(
    bundle: Path = typer.Argument(..., help="Folder written by `xcite export`."),
    host: str = typer.Option("127.0.0.1", help="Address to bind; by default only this machine."),
    port: int = typer.Option(8000, min=0, max=65535, help="0 takes any free port."),
    token: str = typer.Option(
        None, envvar="XCITE_TOKEN", help="Bearer token that requests must carry."
    ),
    max_bytes: int = typer.Option(16 * 2**20, min=1024, help="Of one request."),
    max_pixels: int = typer.Option(50_000_000, min=1, help="Of one picture."),
    max_files: int = typer.Option(32, min=1, help="Of one request."),
    queue: int = typer.Option(256, min=1, help="Pictures in work or waiting; more get 429."),
    batch: int = typer.Option(16, min=1, help="Most pictures predicted together."),
    wait_ms: float = typer.Option(2.0, min=0, help="How long a picture waits for company."),
    mode: str = typer.Option("latency", help="latency or throughput, of the Predictor."),
    timeout: float = typer.Option(30.0, min=0.1, help="Seconds for one request."),
) -> None:
    """Serve a bundle over HTTP, with a page at /, until SIGTERM or Ctrl-C."""
    from xcite.server.limits import Limits
    from xcite.server.serve import serve as run

    limits = Limits(
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        max_files=max_files,
        queue=queue,
        batch=batch,
        wait=wait_ms / 1000,
        timeout=timeout,
    )
    run(bundle, host=host, port=port, token=token, limits=limits, mode=mode)
