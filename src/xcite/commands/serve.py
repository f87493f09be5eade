"""`xcite serve`: a bundle over HTTP."""

import os
import sys
from pathlib import Path

import typer

from xcite.errors import XciteError
from xcite.language import tr

app = typer.Typer(add_completion=False)


@app.command()
def serve(
    bundle: Path = typer.Argument(..., help="Folder written by `xcite export`."),
    host: str = typer.Option("127.0.0.1", help="Address to bind; by default only this machine."),
    port: int = typer.Option(8000, min=0, max=65535, help="0 takes any free port."),
    token_file: Path = typer.Option(
        None, help="File with the bearer token that requests must carry; or set XCITE_TOKEN."
    ),
    token: str = typer.Option(
        None, help="The token itself: every user of this machine sees it in the process list."
    ),
    allow_host: list[str] = typer.Option(
        [], metavar="NAME", help="Answer only under this name (Host); may be repeated."
    ),
    allow_origin: list[str] = typer.Option(
        [],
        metavar="ORIGIN",
        help="Pages of this origin (https://shop.example) may read answers (CORS); may be "
        "repeated, * for all.",
    ),
    root_path: str = typer.Option(
        "", metavar="PATH", help="Where a proxy has put the server, as /models/xcite."
    ),
    workers: int = typer.Option(
        1, min=1, max=256, help="Processes that answer; each loads the bundle and has the limits."
    ),
    access_log: bool = typer.Option(
        False, "--access-log", help="A line about every request on standard error."
    ),
    max_bytes: int = typer.Option(
        16 * 2**20, min=1024, help="Of one request, also after decompression."
    ),
    max_pixels: int = typer.Option(50_000_000, min=1, help="Of one picture."),
    max_files: int = typer.Option(32, min=1, help="Of one request."),
    decoders: int = typer.Option(
        None, min=1, help="Processes that decode ordinary pictures; by default 2 to 8, by cores."
    ),
    decode_seconds: float = typer.Option(
        10.0, min=0.1, help="Processor time for decoding one picture."
    ),
    connections: int = typer.Option(
        1024, min=8, help="Open at the same time; beyond, the longest idle one is closed."
    ),
    queue: int = typer.Option(256, min=1, help="Pictures in work or waiting; more get 429."),
    batch: int = typer.Option(16, min=1, help="Most pictures predicted together."),
    wait_ms: float = typer.Option(2.0, min=0, help="How long a picture waits for company."),
    mode: str = typer.Option("latency", help="latency or throughput, of the Predictor."),
    timeout: float = typer.Option(30.0, min=0.1, help="Seconds for one request."),
) -> None:
    """Serve a bundle over HTTP, with a page at /, until SIGTERM or Ctrl-C."""
    from xcite.server.access import Access
    from xcite.server.limits import Limits
    from xcite.server.serve import serve as run
    from xcite.server.serving import Settings

    access = Access(
        token=_token(token_file, token),
        hosts=allow_host,
        origins=allow_origin,
        root_path=root_path,
    )
    limits = Limits(
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        max_files=max_files,
        decoders=decoders,
        decode_seconds=decode_seconds,
        connections=connections,
        queue=queue,
        batch=batch,
        wait=wait_ms / 1000,
        timeout=timeout,
    )
    settings = Settings(str(bundle), access, limits, mode, access_log=access_log)
    run(settings, host=host, port=port, workers=workers)


def _token(file: Path | None, given: str | None) -> str | None:
    """The token of the file, the command line or the environment; None where there is none."""
    if file is not None and given is not None:
        raise XciteError("--token-file and --token were given; one of them is enough")
    if file is not None:
        try:
            token = file.read_text("utf-8").strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise XciteError(f"cannot read the token file {file}: {reason}") from error
        source = f"the token file {file}"
    elif given is not None:
        token, source = given.strip(), "--token"
        print(
            tr("xcite: --token shows in the process list; --token-file or XCITE_TOKEN does not"),
            file=sys.stderr,
        )
    elif "XCITE_TOKEN" in os.environ:
        token, source = os.environ["XCITE_TOKEN"].strip(), "XCITE_TOKEN"
    else:
        return None
    if not token:
        raise XciteError(f"{source} is empty; put a token there, or leave it out")
    return token
