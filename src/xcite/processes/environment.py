"""Which process of how many this is, as launchers say by environment variables.

torchrun sets ``RANK`` and its kin, `paddle.distributed.launch` ``PADDLE_TRAINER_ID`` and its kin;
each engine reads its own framework's. srun sets neither, but numbers its tasks: `settle` turns that
into the variables of the run's engine. ``SLURM_NTASKS`` alone says nothing, as the one process of a
batch script sees it, too.
"""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from xcite.errors import XciteError

# What the frameworks' joining and collectives may take, in units of ``run.process_timeout``; the
# first step may compile, and process 0 may have work of its own, so the watchdog speaks before.
LENIENCE = 3
OPTIONS = "XCITE_LAUNCH_OPTIONS"  # with which `xcite train` started this process, for messages
RESTARTS = "XCITE_RESTARTS"  # how often it has started all of them again
_TIMEOUT = "XCITE_PROCESS_TIMEOUT"

_NUMBERS = {  # rank, size, rank and number on this machine
    "torch": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "paddle": (
        "PADDLE_TRAINER_ID",
        "PADDLE_TRAINERS_NUM",
        "PADDLE_LOCAL_RANK",
        "PADDLE_LOCAL_SIZE",
    ),
}
_settled: set[str] = set()  # engines of this process's runs
_LAUNCHERS = {"torch": "torchrun", "paddle": "paddle.distributed.launch"}


@dataclass(frozen=True)
class Place:
    """One process among those of its run.

    Attributes:
        rank: 0 to size - 1.
        local_rank, local_size: among those of its machine.
        meeting: "host:port" where the processes meet; "" for a single one.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    meeting: str = ""


def place(engine: str, variables: Mapping[str, str] | None = None) -> Place:
    """What the launcher of the engine's framework says; one process where it says nothing.

    Args:
        variables: the environment by default.

    Raises:
        XciteError: variables are missing, are no numbers, or contradict each other.
    """
    variables = os.environ if variables is None else variables
    rank_name, size_name, local_rank_name, local_size_name = _NUMBERS[engine]
    if not variables.get(rank_name) and not variables.get(size_name):
        return Place()
    rank, size = _number(variables, rank_name), _number(variables, size_name, least=1)
    if rank >= size:
        raise _contradiction(f"{rank_name} is {rank}, but {size_name} only {size}")
    if size == 1:
        return Place()
    local_size = _number(variables, local_size_name, least=1, otherwise=1)
    local_rank = _number(variables, local_rank_name, otherwise=rank % local_size)
    if local_rank >= local_size or local_size > size:
        raise _contradiction(
            f"{local_rank_name} is {local_rank}, {local_size_name} {local_size}, {size_name} {size}"
        )
    return Place(rank, size, local_rank, local_size, _meeting(engine, variables))


def settle(engine: str) -> Place:
    """Which process of a run with this engine this is; exports what its framework reads.

    Raises:
        XciteError: as `place`; or another framework's launcher started this process, or srun
            started several without saying where they meet.
    """
    _settled.add(engine)
    if _named(engine, os.environ):
        return place(engine)
    other = next(name for name in _NUMBERS if name != engine)
    if _named(other, os.environ) and _number(os.environ, _NUMBERS[other][1], least=1) > 1:
        raise XciteError(
            f"{_LAUNCHERS[other]} started this process ({_NUMBERS[other][1]} is set), but the "
            f"run's engine is {engine}; give --engine {other}, or start it by "
            "`xcite train ... --processes N`"
        )
    os.environ.update(_from_slurm(engine, os.environ))
    return place(engine)


def joined(engine: str) -> Place:
    """This process's place in the run that `settle` was called for; alone where there is none.

    So a command that trains nothing joins nobody, whatever variables a container has.
    """
    return place(engine) if engine in _settled else Place()


def is_launched() -> bool:
    """Whether a launcher of either framework started this process, alone or with others."""
    names = ("LOCAL_RANK", "PADDLE_LOCAL_RANK", "TORCHELASTIC_RUN_ID")
    return any(os.environ.get(name) for name in names)


def set_timeout(seconds: float) -> None:
    """How long a run's processes wait for each other, for the engines to be built from now on."""
    os.environ[_TIMEOUT] = f"{seconds:g}"


def joining_seconds() -> float:
    """How long joining and a single exchange may take."""
    return LENIENCE * float(os.environ.get(_TIMEOUT, "600"))


def restarted() -> bool:
    """Whether this process takes the place of one that was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or os.environ.get(RESTARTS) or 0) > 0


def launch_options() -> str:
    """The options with which `xcite train` started this and the other processes; "" for one."""
    return os.environ.get(OPTIONS, "")


def _named(engine: str, variables: Mapping[str, str]) -> bool:
    return any(variables.get(name) for name in _NUMBERS[engine][:2])


def _number(
    variables: Mapping[str, str], name: str, *, least: int = 0, otherwise: int | None = None
) -> int:
    text = variables.get(name, "").strip()
    if not text:
        if otherwise is not None:
            return otherwise
        raise XciteError(
            f"the environment says that this is one process of several, but {name} is missing; "
            "start them by `xcite train ... --processes N`, or unset "
            + ", ".join(n for names in _NUMBERS.values() for n in names if variables.get(n))
        )
    if not re.fullmatch(r"\d{1,9}", text) or int(text) < least:
        raise XciteError(
            f"the environment variable {name} is {text!r}, no whole number from {least} on; "
            f"start the processes by `xcite train ... --processes N`, or unset {name}"
        )
    return int(text)


def _contradiction(what: str) -> XciteError:
    return XciteError(
        f"the environment variables of this process contradict each other: {what}; start the "
        "processes by `xcite train ... --processes N`"
    )


def _meeting(engine: str, variables: Mapping[str, str]) -> str:
    """Where the processes meet, "host:port"."""
    address, port = variables.get("MASTER_ADDR"), variables.get("MASTER_PORT")
    if engine == "paddle" and not (address and port):
        first = variables.get("PADDLE_TRAINER_ENDPOINTS", "").partition(",")[0]
        found = variables.get("PADDLE_MASTER") or first
        if not found:
            raise XciteError(
                "the environment does not say where the processes meet: PADDLE_MASTER is missing; "
                "start them by `xcite train ... --processes N`"
            )
        address, _, port = found.removeprefix("etcd://").rpartition(":")
    missing = [n for n, v in {"MASTER_ADDR": address, "MASTER_PORT": port}.items() if not v]
    if missing:
        raise XciteError(
            f"the environment does not say where the processes meet: {' and '.join(missing)} "
            "missing; start them by `xcite train ... --processes N`"
        )
    if not re.fullmatch(r"\d{1,5}", str(port)):
        raise XciteError(
            f"the processes' meeting point {address}:{port} has no port number; start them by "
            "`xcite train ... --processes N`"
        )
    return f"{address}:{port}"


def _from_slurm(engine: str, variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of the engine's framework for a task of srun; none for a single one."""
    if not variables.get("SLURM_STEP_NUM_TASKS") or not variables.get("SLURM_PROCID"):
        return {}
    rank, size = (_number(variables, name) for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))
    if size < 2:
        return {}
    address, port = variables.get("MASTER_ADDR"), variables.get("MASTER_PORT")
    if not address or not port:
        raise XciteError(
            f"srun started {size} tasks, which do not know where to meet; before srun, type: "
            'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) '
            "MASTER_PORT=29500 (or let `xcite slurm` write the script)"
        )
    local_rank = _number(variables, "SLURM_LOCALID", otherwise=0)
    local_size = max(local_rank + 1, _tasks_here(variables))
    found = dict(zip(_NUMBERS[engine], map(str, (rank, size, local_rank, local_size)), strict=True))
    if engine == "paddle":
        # Each must have an endpoint of its own; Paddle's collectives never open it.
        found |= {
            "PADDLE_CURRENT_ENDPOINT": f"{socket.gethostname()}:{int(port) + 1 + local_rank}",
            "PADDLE_MASTER": f"{address}:{port}",
            "FLAGS_selected_gpus": str(local_rank),
        }
    return found


def _tasks_here(variables: Mapping[str, str]) -> int:
    """Tasks of this step on this machine, out of a text such as "4(x2),3"; 1 where unknown."""
    node = _number(variables, "SLURM_NODEID", otherwise=0)
    text = variables.get("SLURM_STEP_TASKS_PER_NODE", "")
    counts = [
        int(count)
        for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
        for _ in range(int(times or 1))
    ]
    return counts[node] if node < len(counts) else 1
