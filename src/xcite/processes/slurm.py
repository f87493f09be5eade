"""A batch script for SLURM: one launcher on each node, stopped, queued again and gone on with."""

import re
import shlex
from dataclasses import dataclass

from xcite.errors import XciteError

# A run is told so long before its time is over; saving a large model takes seconds.
SECONDS_TO_SAVE = 300


@dataclass(frozen=True)
class Job:
    """What to ask SLURM for, and what to run.

    Attributes:
        python: the interpreter on the nodes.
        train: arguments of `xcite train`, without the run's folder and processes.
        out: the run's folder, on a file system that all nodes share.
        gpus: of a node; 0 trains on processors.
        processes: on a node.
        cpus: of a process; None leaves it to the cluster.
        time: as SLURM writes it, such as "1-00:00:00"; None for the partition's limit.
    """

    name: str
    python: str
    train: tuple[str, ...]
    out: str
    nodes: int
    gpus: int
    processes: int
    cpus: int | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None


def script(job: Job) -> str:
    """The text of the batch script.

    Raises:
        XciteError: a value that is no single word for SLURM.
    """
    asked = {
        "job-name": re.sub(r"[^\w.-]+", "-", job.name),
        "nodes": str(job.nodes),
        "ntasks-per-node": "1",
        "gpus-per-node": str(job.gpus) if job.gpus else None,
        "cpus-per-task": str(job.cpus * job.processes) if job.cpus else None,
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "output": "%x-%j.log",
        "open-mode": "append",
        "signal": f"USR1@{SECONDS_TO_SAVE}",
    }
    for option, value in asked.items():
        if value is not None and not re.fullmatch(r"[\w.,:@%+-]+", value):
            raise XciteError(f"--{option} {value!r} is no value for SLURM; give a single word")
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH --{option}={value}" for option, value in asked.items() if value is not None]
    lines += ["#SBATCH --requeue", "", "set -u"]
    command = [job.python, "-m", "xcite", "train", *job.train, "--out", job.out, "--auto-resume"]
    words = shlex.join(command)
    if job.processes > 1 or job.nodes > 1:
        words += f" --processes {job.processes}"
    if job.nodes > 1:
        lines += [
            "# The nodes meet at the first one; the port follows the job, as others may run there.",
            'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            "port=$((20000 + SLURM_JOB_ID % 20000))",
        ]
        words += f' --hosts {job.nodes} --rendezvous "$first:$port"'
    if job.cpus:
        lines += [
            "# srun does not take this from the job by itself.",
            'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
        ]
    lines += [
        "# After SIGTERM (preempted, cancelled) it is for SLURM to say whether the job comes back.",
        "ended=no",
        "trap 'ended=yes' TERM",
        f"srun --kill-on-bad-exit=0 {words}",
        "code=$?",
        f"# {SECONDS_TO_SAVE} seconds before its time is over the run saves and ends with 130.",
        'if [ "$code" = 130 ] && [ "$ended" = no ]; then',
        '    scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        'exit "$code"',
        "",
    ]
    return "\n".join(lines)
