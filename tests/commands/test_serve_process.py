"""`xcite serve` as a process: it starts, answers, and stops without losing what it accepted."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("openvino")
httpx = pytest.importorskip("httpx")

from serving import make_bundle, photograph  # noqa: E402


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("process") / "bundle")


def _start(bundle, *options):
    process = subprocess.Popen(
        [sys.executable, "-m", "xcite.cli", "serve", str(bundle), "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found, line + process.stderr.read()
    address = found[0]
    for _ in range(200):
        try:
            httpx.get(f"{address}/health")
            return process, address
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the server did not come up")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_accepted_requests_are_answered_before_it_stops(bundle, number):
    # 0.7 s of waiting for company: all requests are inside when the signal comes
    process, address = _start(bundle, "--wait-ms", "700", "--batch", "64")
    try:
        statuses = []

        def ask(seed):
            answer = httpx.post(
                f"{address}/predict", files={"file": ("a.png", photograph(seed))}, timeout=120
            )
            statuses.append(answer.status_code)

        callers = [threading.Thread(target=ask, args=(seed,)) for seed in range(12)]
        for caller in callers:
            caller.start()
        deadline = time.monotonic() + 60
        while "xcite_queue_pictures 12.0" not in httpx.get(f"{address}/metrics").text:
            assert time.monotonic() < deadline
        process.send_signal(number)
        for caller in callers:
            caller.join(30)
        assert process.wait(30) == 0
        assert statuses == [200] * 12
        assert "Traceback" not in process.stderr.read()
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{address}/health")
    finally:
        process.kill()
        process.communicate()


def test_a_taken_port_is_one_line(bundle):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        run = subprocess.run(
            [sys.executable, "-m", "xcite.cli", "serve", str(bundle), "--port", port],
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert f"port {port}" in run.stderr


def test_no_bundle_is_one_line(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "xcite.cli", "serve", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 2
    assert "not a bundle" in run.stderr
    assert run.stderr.count("\n") == 1
