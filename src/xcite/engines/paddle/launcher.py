"""Starts the processes of a run by Paddle's own launcher, in a process of its own."""

import os
import sys
import time
from pathlib import Path

import paddle
from paddle.distributed.launch.context import Context
from paddle.distributed.launch.controllers.collective import CollectiveController

from xcite.processes.line import GRACE
from xcite.processes.order import Order, die_with_parent, report_ends


def devices() -> int:
    """GPUs of this machine that Paddle can use."""
    return int(paddle.device.cuda.device_count())


def launch(order: Order, folder: Path) -> dict[int, int]:
    """Start the processes and wait for their end.

    Args:
        folder: where the launcher's own files go.

    Returns:
        Exit codes of the processes that failed first, by rank, negative for a signal.
    """
    options = {
        "nnodes": order.hosts[0],
        "nproc_per_node": order.processes,
        "job_id": order.name,
        "host": order.address,
        "log_dir": folder / "paddle",
        "log_level": "ERROR",
        "enable_gpu_log": False,
    }
    if order.rendezvous:
        options["master"] = order.rendezvous
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    sys.argv = ["launch", *given, *order.command]
    controller = CollectiveController(Context())
    controller.build_job()
    controller.build_pod()
    controller.deploy_pod()
    # Its own watch would kill the others three seconds after the first failure, while they save.
    pod = controller.pod
    while (failed := pod.failed_container()) == [] and not pod.is_completed():
        time.sleep(0.1)
    codes = {int(c.env["PADDLE_TRAINER_ID"]): c.exit_code for c in failed}
    if failed:
        pod.stop(timeout=int(GRACE))
    controller.master.stop()
    return codes


if __name__ == "__main__":
    if sys.argv[1:] == ["--devices"]:
        print(devices())
    else:
        die_with_parent()
        os.environ.setdefault("GLOG_minloglevel", "2")
        report_ends(Path(sys.argv[1]), launch(Order.read(Path(sys.argv[1])), Path(sys.argv[1])))
