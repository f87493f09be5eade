"""Two processes with half a batch each do what one does with the whole batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xcite.engines import installed

WORKER = Path(__file__).with_name("process_worker.py")


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def environments(name, size):
    """What torchrun and `paddle.distributed.launch` set for each process."""
    ports = free_ports(size + 1)
    endpoints = [f"127.0.0.1:{port}" for port in ports[:size]]
    for rank in range(size):
        if name == "torch":
            yield {
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(ports[size]),
            }
        else:
            yield {
                "PADDLE_TRAINER_ID": str(rank),
                "PADDLE_TRAINERS_NUM": str(size),
                "PADDLE_LOCAL_SIZE": str(size),
                "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
                "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
                "PADDLE_MASTER": f"127.0.0.1:{ports[size]}",
                "PADDLE_DISTRI_BACKEND": "gloo",
            }


def train(name, size, out):
    """Run the worker in ``size`` processes; what each of them ended with."""
    extra = environments(name, size) if size > 1 else [{}]
    running = [
        subprocess.Popen(
            [sys.executable, str(WORKER), name, str(out)],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for environment in extra
    ]
    try:
        for process in running:
            text, _ = process.communicate(timeout=180)
            assert process.returncode == 0, text
    finally:
        for process in running:
            process.kill()
    return [dict(np.load(f"{out}-{rank}.npz")) for rank in range(size)]


@pytest.mark.slow
@pytest.mark.parametrize("name", installed())
def test_two_halves_are_one_whole(name, tmp_path):
    (whole,) = train(name, 1, tmp_path / "one")
    first, second = train(name, 2, tmp_path / "two")
    for key in first:  # both processes end with the same
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)
    assert first["ranks"] == pytest.approx(0.5)
    # the halves' sums are rounded in another order than the whole's
    np.testing.assert_allclose(first["results"], whole["results"], rtol=1e-4)
    for key, array in whole.items():
        if key.startswith(("moment", "ema")) or "running" in key:
            np.testing.assert_allclose(
                first[key], array, rtol=0, atol=1e-3 * np.abs(array).max() + 1e-6, err_msg=key
            )
