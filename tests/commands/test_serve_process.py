"""`xcite serve` as a process: it starts, answers, and stops without losing what it accepted."""

import contextlib
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

from serving import make_bundle, photograph, repeated_scans  # noqa: E402


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


@pytest.fixture
def limited(bundle):
    process, address = _start(bundle, "--connections", "300", "--timeout", "12")
    yield process, address, int(address.rpartition(":")[2])
    process.kill()
    process.communicate()


def _silent(port, count, sent):
    """Connections on which that much was sent, and then nothing."""
    result = []
    for _ in range(count):
        one = socket.create_connection(("127.0.0.1", port), timeout=30)
        one.sendall(sent)
        result.append(one)
    return result


def _closed(one):
    one.settimeout(0)
    try:
        while one.recv(4096):
            pass  # a refusal in words
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"


@pytest.mark.parametrize(
    "sent",
    [b"", HEAD, HEAD + b"Content-Length: 10000000\r\n\r\n" + 1000 * b"x"],
    ids=["idle", "half a head", "half a body"],
)
def test_silent_connections_keep_nobody_out_and_are_closed(limited, sent):
    _, address, port = limited
    silent = _silent(port, 600, sent)
    started = time.monotonic()
    for seed in range(20):
        answer = httpx.post(
            f"{address}/predict", files={"file": ("a.png", photograph(seed))}, timeout=10
        )
        assert answer.status_code == 200
    assert time.monotonic() - started < 8
    assert sum(map(_closed, silent)) >= 300  # those above the limit made room
    while not all(map(_closed, silent)):
        assert time.monotonic() - started < 40
        time.sleep(0.1)
    for one in silent:
        one.close()


def test_a_head_that_comes_in_drops_is_given_up(limited):
    _, address, port = limited
    [one] = _silent(port, 1, HEAD)
    started = time.monotonic()
    while not _closed(one) and time.monotonic() - started < 30:
        with contextlib.suppress(OSError):
            one.settimeout(5)
            one.sendall(b"X")
        time.sleep(0.3)
    assert 9 < time.monotonic() - started < 20
    assert httpx.get(f"{address}/health").status_code == 200


def test_a_body_that_comes_in_drops_is_given_up(bundle):
    process, address = _start(bundle, "--timeout", "3")
    try:
        [one] = _silent(int(address.rpartition(":")[2]), 1, HEAD + b"Content-Length: 1000\r\n\r\n")
        started = time.monotonic()
        one.settimeout(0.3)
        answer = b""
        while not answer and time.monotonic() - started < 30:
            one.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                answer = one.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert 2 < time.monotonic() - started < 10
    finally:
        process.kill()
        process.communicate()


def test_no_accepted_request_is_lost_under_load(bundle):
    process, address = _start(bundle)
    port = int(address.rpartition(":")[2])
    picture = photograph(3)
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(picture) + picture
    good, lost, refused = [], [], threading.Event()

    def ask():
        while not refused.is_set():
            try:
                one = socket.create_connection(("127.0.0.1", port), timeout=20)
            except OSError:
                refused.set()
                return
            try:
                with one:
                    one.sendall(request)
                    good.append(one.recv(4096)[:15])
            except OSError as error:
                lost.append(repr(error))

    try:
        callers = [threading.Thread(target=ask) for _ in range(24)]
        for caller in callers:
            caller.start()
        time.sleep(2)
        stopped = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        assert time.monotonic() - stopped < 10
        for caller in callers:
            caller.join(30)
        assert not lost
        assert set(good) == {b"HTTP/1.1 200 OK"}
        assert len(good) > 100
    finally:
        process.kill()
        process.communicate()


def test_it_stops_in_time_whatever_is_running(bundle):
    process, address = _start(bundle, "--decode-seconds", "60", "--timeout", "60")
    port = int(address.rpartition(":")[2])
    try:
        heavy = repeated_scans(7000, 45)  # several seconds each, one after the other
        request = HEAD + b"Content-Length: %d\r\n\r\n" % len(heavy) + heavy
        waiting = _silent(port, 6, request)
        time.sleep(1)
        assert httpx.get(f"{address}/health", timeout=10).status_code == 200
        stopped = time.monotonic()
        process.send_signal(signal.SIGTERM)
        answers = [one.recv(4096)[:15] for one in waiting]
        process.wait(15)
        assert time.monotonic() - stopped < 10
        assert process.returncode == 0
        assert set(answers) <= {b"HTTP/1.1 200 OK", b"HTTP/1.1 503 Se"}
        assert b"HTTP/1.1 503 Se" in answers
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


def test_it_stops_in_time_when_even_the_event_loop_hangs(tmp_path):
    code = (
        "import time\n"
        "from xcite.server import connections\n"
        "connections.STOP_SECONDS = 1\n"
        "connections.stop_in_time()\n"
        "time.sleep(60)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], timeout=50, check=False)
    assert run.returncode == -signal.SIGALRM


def test_work_that_nobody_waits_for_ends(bundle):
    process, address = _start(bundle, "--decode-seconds", "60", "--timeout", "60")
    port = int(address.rpartition(":")[2])
    try:
        heavy = repeated_scans(7000, 45)
        request = HEAD + b"Content-Length: %d\r\n\r\n" % len(heavy) + heavy
        for one in _silent(port, 3, request):
            time.sleep(0.5)
            one.close()
        # the one that takes heavy pictures is free for this one
        picture = photograph(width=5000, height=4000)
        answer = httpx.post(f"{address}/predict", files={"file": ("a.png", picture)}, timeout=30)
        assert answer.status_code == 200
    finally:
        process.kill()
        process.communicate()


def _refused(*options, **environment):
    run = subprocess.run(
        [sys.executable, "-m", "xcite.cli", "serve", *map(str, options)],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | environment,
    )
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1 + ("--token shows" in run.stderr)
    return run.stderr


def test_the_token_comes_from_a_file_or_the_environment(bundle, tmp_path):
    empty, file = tmp_path / "empty", tmp_path / "token"
    empty.write_text("\n")
    file.write_text("s3cret\n")
    assert "is empty" in _refused(bundle, "--token-file", empty)
    assert "is empty" in _refused(bundle, "--token", "")
    assert "XCITE_TOKEN is empty" in _refused(bundle, XCITE_TOKEN="")
    assert "cannot read the token file" in _refused(bundle, "--token-file", tmp_path / "none")
    assert "one of them is enough" in _refused(bundle, "--token-file", file, "--token", "a")
    process, address = _start(bundle, "--token-file", str(file))
    try:
        assert httpx.get(f"{address}/info").status_code == 401
        right = {"authorization": "Bearer s3cret"}
        assert httpx.get(f"{address}/info", headers=right).status_code == 200
    finally:
        process.kill()
        process.communicate()
