"""`xcite train --processes N`: the options, the run's folder, and what is told at the end."""

import contextlib
import shlex
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

from xcite.commands.printing import say
from xcite.errors import XciteError
from xcite.language import tr
from xcite.processes import environment
from xcite.processes.order import Order, own_address, parse_hosts, parse_rendezvous

RESTARTS_OF_A_RANGE = 3


@dataclass(frozen=True)
class Group:
    """The processes that are asked for.

    Attributes:
        processes: on this machine; None for one a GPU.
        hosts: machines, at least and at most.
        rendezvous: "host:port" as given; "" for a single machine.
    """

    processes: int | None
    hosts: tuple[int, int]
    rendezvous: str
    restarts: int


def group(
    processes: str | None, hosts: str | None, rendezvous: str | None, restarts: int | None
) -> Group | None:
    """What the options ask for; None for one process, which needs no launcher unless it is to be
    started again.

    Raises:
        XciteError: they contradict each other.
    """
    if processes is None:
        if hosts or rendezvous or restarts:
            raise XciteError(
                "--hosts, --rendezvous and --restarts need --processes, the number on each machine"
            )
        return None
    if processes != "auto" and not (processes.isdecimal() and 0 < int(processes) < 10_000):
        raise XciteError(f"--processes {processes}: give a number, or auto for one a GPU")
    if environment.is_launched():
        raise XciteError(
            "--processes starts the processes, but a launcher (torchrun, "
            "paddle.distributed.launch) has started this one already; leave out one of the two"
        )
    span = parse_hosts(hosts) if hosts else (1, 1)
    if span[1] > 1 and not rendezvous:
        raise XciteError(
            f"--hosts {hosts} needs --rendezvous HOST:PORT: one of the machines, and a free port"
        )
    if rendezvous:
        parse_rendezvous(rendezvous)
    if processes == "1" and span[1] == 1 and not restarts:
        return None
    if restarts is None:
        restarts = RESTARTS_OF_A_RANGE if span[0] < span[1] else 0
    return Group(None if processes == "auto" else int(processes), span, rendezvous or "", restarts)


def claim(folder: Path, *, numbered: bool) -> Path:
    """The folder of a new run, which all processes are given; a numbered one is made.

    Raises:
        XciteError: it is in use, or cannot be made.
    """
    from xcite.training.run_folder import RunFolder, next_run_folder

    if not numbered:
        RunFolder(folder).refuse_used()
        return folder
    while True:
        path = next_run_folder(folder)
        RunFolder(path).refuse_used()
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:  # of a run that began just now
            continue
        except OSError as error:
            raise XciteError(f"cannot make the run folder {path}: {error.strerror}") from error


def launch(group: Group, engine: str, train: list[str], folder: Path, *, debug: bool) -> int:
    """Train with the processes of a group; the run's exit code.

    Args:
        train: arguments of `xcite train` for each process.
        folder: of the run, to go on with.

    Raises:
        XciteError: what ended the run.
    """
    try:
        order = _order(group, engine, train, folder, debug=debug)
        return _supervised(engine, order, _options(group, order.processes), folder)
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # nothing was begun in it


def _order(group: Group, engine: str, train: list[str], folder: Path, *, debug: bool) -> Order:
    least, most = group.hosts
    if engine == "paddle" and least != most:
        raise XciteError(
            f"--hosts {least}:{most}: Paddle's launcher takes a fixed number of machines; "
            "give one, or --engine torch"
        )
    processes = group.processes or _gpus(engine)
    rendezvous, address = "", "127.0.0.1"
    if most > 1:
        host, port = parse_rendezvous(group.rendezvous)
        rendezvous, address = f"{host}:{port}", own_address(host, port)
    command = [sys.executable, "-m", "xcite.commands.launched", engine]
    command += ["--debug"] if debug else []
    return Order(
        processes=processes,
        hosts=group.hosts,
        rendezvous=rendezvous,
        restarts=group.restarts,
        command=(*command, "train", *train),
        name=f"xcite-{zlib.crc32(str(folder).encode('utf-8', 'surrogateescape')):08x}",
        address=address,
    )


def _supervised(engine: str, order: Order, options: str, folder: Path) -> int:
    from xcite.processes.supervisor import supervise

    try:
        return supervise(
            engine,
            order,
            options=options,
            restartable=engine == "torch",
            note=lambda text: say(text, err=True),
        )
    except KeyboardInterrupt:
        say(tr("stopped before the run began"), err=True)
        return 130
    except XciteError as error:
        begun = (folder / "recipe.yaml").is_file()
        if not begun or "go on with: " in str(error):
            raise
        from xcite.training.run_folder import resume_command

        command_line = f"{resume_command(folder)} {options}"
        raise XciteError(
            f"{error}; the run stays as its last checkpoint left it; go on with: {command_line}"
        ) from error


def _options(group: Group, processes: int) -> str:
    options = f"--processes {processes}"
    if group.rendezvous and group.hosts[1] > 1:
        hosts = ":".join(str(number) for number in sorted(set(group.hosts)))
        options += f" --hosts {hosts} --rendezvous {shlex.quote(group.rendezvous)}"
    if group.restarts:
        options += f" --restarts {group.restarts}"
    return options


def _gpus(engine: str) -> int:
    """GPUs of this machine that an engine can use.

    Raises:
        XciteError: there is none.
    """
    from xcite.engines import engine_package

    engine_package(engine)  # says what is missing where it is not installed
    command = [sys.executable, "-m", f"xcite.engines.{engine}.launcher", "--devices"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    count = int(asked.stdout.split()[-1]) if asked.stdout.split()[-1:] else 0
    if asked.returncode or not count:
        raise XciteError(
            "--processes auto starts one process for each GPU, and there is none here; give a "
            "number: --processes 2"
        )
    return count
