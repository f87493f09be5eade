"""Starts the processes of a run by PyTorch's own launcher, in a process of its own."""

import os
import sys
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from xcite.processes.line import GRACE
from xcite.processes.order import Order, can_host, die_with_parent, report_ends


def devices() -> int:
    """GPUs of this machine that PyTorch can use."""
    return torch.cuda.device_count()


def launch(order: Order, folder: Path) -> dict[int, int]:
    """Start the processes and wait for their end.

    Args:
        folder: where the launcher's own files go.

    Returns:
        Exit codes of the processes that failed first, by rank, negative for a signal.
    """
    rendezvous = order.rendezvous or "127.0.0.1:0"
    host, _, port = rendezvous.rpartition(":")
    config = LaunchConfig(
        min_nodes=order.hosts[0],
        max_nodes=order.hosts[1],
        nproc_per_node=order.processes,
        run_id=order.name,
        rdzv_backend="c10d",
        rdzv_endpoint=rendezvous,
        rdzv_configs={"is_host": can_host(host, int(port)), "join_timeout": 600},
        max_restarts=order.restarts,
        local_addr=order.address,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "torch")),
        shutdown_timeout=int(GRACE),
    )
    try:
        elastic_launch(config, order.command[0])(*order.command[1:])
    except ChildFailedError as error:
        # Those that were ended by force because of the first count among them, half a minute later.
        first = min(failure.timestamp for failure in error.failures.values())
        return {
            rank: failure.exitcode
            for rank, failure in error.failures.items()
            if failure.timestamp - first <= 1
        }
    return {}


if __name__ == "__main__":
    if sys.argv[1:] == ["--devices"]:
        print(devices())
    else:
        die_with_parent()
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        # Shared with the launcher, the processes' store would still name those before a restart.
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
        report_ends(Path(sys.argv[1]), launch(Order.read(Path(sys.argv[1])), Path(sys.argv[1])))
