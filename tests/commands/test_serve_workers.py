"""`xcite serve --workers`: several processes on one port that look like one server."""

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("openvino")
httpx = pytest.importorskip("httpx")

from serving import make_bundle, photograph  # noqa: E402

from xcite.errors import XciteError  # noqa: E402
from xcite.runtime.bundle import read_info, seal_folder  # noqa: E402
from xcite.server import workers  # noqa: E402
from xcite.server.decoding_worker import send  # noqa: E402
from xcite.server.serving import Settings  # noqa: E402
from xcite.server.signs import LATE, Signs  # noqa: E402


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("workers") / "bundle")


class _Server:
    """Two workers, and what they have written."""

    def __init__(self, bundle, *options, **environment):
        command = [sys.executable, "-m", "xcite.cli", "serve", str(bundle), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--workers", "2", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
            start_new_session=True,
        )
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert found, line + self.process.stderr.read()
        self.address, self.port = found[0], int(found[1])
        self.memory = self.process.stdout.readline()

    def workers(self):
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def predict(self, seed=0):
        files = {"file": ("a.png", photograph(seed))}
        return httpx.post(f"{self.address}/predict", files=files, timeout=60)

    def counted(self, name):
        text = httpx.get(f"{self.address}/metrics", timeout=20).text
        return sum(float(n) for n in re.findall(rf"^{re.escape(name)} (\S+)$", text, re.M))

    def folders(self):
        maps = [Path(f"/proc/{pid}/maps").read_text() for pid in self.workers()]
        return {found for text in maps for found in re.findall(r"\S*/xcite-serve-[^/\s]+", text)}

    def end(self):
        for pid in self.workers() if self.process.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start(bundle):
    servers = []

    def begin(*options, **environment):
        servers.append(_Server(bundle, *options, **environment))
        return servers[-1]

    yield begin
    for server in servers:
        server.end()


def _until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_one_server_of_two_processes(start):
    server = start("--root-path", "/m", "--wait-ms", "0")
    assert re.fullmatch(r"2 workers, \d+ MiB each, \d+ MiB together\n", server.memory)
    first = server.workers()
    assert len(first) == 2
    assert not any(b"s3cret" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in first)

    # counted together, whichever process answers
    with httpx.Client() as kept:  # one connection stays with one worker
        for seed in range(5):
            files = {"file": ("a.png", photograph(seed))}
            assert kept.post(f"{server.address}/m/predict", files=files).status_code == 200
    assert all(server.predict(seed).status_code == 200 for seed in range(15))
    assert server.counted('xcite_pictures_total{result="answered"}') == 20
    assert server.counted("xcite_worker_starts_total") == 2
    name = 'xcite_requests_total{method="GET",path="/health",status="200"}'
    for _ in range(10):
        assert httpx.get(f"{server.address}/health").json() == {"status": "ok"}
    for _ in range(6):  # asked of either
        assert server.counted(name) == 10

    # a dead one is replaced, and nothing that was counted is forgotten
    os.kill(first[0], signal.SIGKILL)
    assert server.predict(3).status_code == 200  # by the other
    _until(lambda: server.counted("xcite_worker_starts_total") == 3)
    assert len(server.workers()) == 2
    assert server.counted('xcite_pictures_total{result="answered"}') == 21
    assert server.counted("xcite_queue_pictures") == 0
    assert httpx.get(f"{server.address}/health").status_code == 200
    folders = server.folders()
    assert len(folders) == 1

    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(15) == 0
    errors = server.process.stderr.read()
    assert errors == "xcite: worker 1 was ended by SIGKILL; another is started in 0 s\n"
    assert not any(Path(folder).exists() for folder in folders)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{server.address}/health")


@pytest.mark.parametrize("whom", ["SIGTERM to one", "SIGINT to the group"])
def test_no_accepted_request_is_lost(start, whom):
    server = start()
    picture = photograph(3)
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    request = head + b"Content-Length: %d\r\n\r\n" % len(picture) + picture
    good, lost, refused = [], [], threading.Event()

    def ask():
        while not refused.is_set():
            try:
                one = socket.create_connection(("127.0.0.1", server.port), timeout=20)
            except OSError:
                refused.set()
                return
            try:
                with one:
                    one.sendall(request)
                    good.append(one.recv(4096)[:15])
            except OSError as error:
                lost.append(repr(error))

    def spent(pid):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])  # of the processor

    pids = server.workers()
    spent_before = [spent(pid) for pid in pids]
    callers = [threading.Thread(target=ask) for _ in range(16)]
    for caller in callers:
        caller.start()
    time.sleep(2)
    shares = [spent(pid) - before for pid, before in zip(pids, spent_before, strict=True)]
    assert min(shares) > 0.1 * sum(shares)  # both take part
    stopped = time.monotonic()
    if whom == "SIGTERM to one":
        server.process.send_signal(signal.SIGTERM)
    else:
        os.killpg(server.process.pid, signal.SIGINT)  # as a terminal does for Ctrl-C
    assert server.process.wait(15) == 0
    assert time.monotonic() - stopped < 10
    for caller in callers:
        caller.join(30)
    assert not lost
    assert set(good) == {b"HTTP/1.1 200 OK"}
    assert len(good) > 50
    assert server.process.stderr.read() == ""
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


# In every process, before xcite is used: signs of life in seconds instead of minutes.
QUICK = """
import sys
from xcite.server import signs
signs.INTERVAL, signs.LATE, signs.HUNG = 0.3, 3.0, 7.0
"""


def test_a_worker_that_hangs_shows_in_health_and_is_replaced(start, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(QUICK)
    paths = os.pathsep.join([str(tmp_path), *sys.path[1:]])
    server = start(PYTHONPATH=paths)
    hung, other = server.workers()
    os.kill(hung, signal.SIGSTOP)

    def health():
        # what the stopped one accepted is not answered; another connection goes to the other
        try:
            return httpx.get(f"{server.address}/health", timeout=2)
        except httpx.TransportError:
            return None

    answers = []

    def told():
        answers.append(health())
        return answers[-1] is not None and answers[-1].status_code == 503

    _until(told)
    assert re.search("worker [12] of 2 has answered nothing for", answers[-1].json()["error"])
    _until(lambda: (answer := health()) is not None and answer.status_code == 200)
    pids, folders = server.workers(), server.folders()
    assert hung not in pids
    assert other in pids

    server.process.kill()  # and when nobody watches them, workers end by themselves
    _until(lambda: not any(_runs(pid) for pid in pids), 20)
    assert folders
    assert not any(Path(folder).exists() for folder in folders)


def test_a_worker_ends_when_nobody_read_what_it_said_last(bundle, tmp_path):
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.create_server(("127.0.0.1", 0)) as listener:
        descriptors = (theirs.fileno(), listener.fileno())
        arguments = [*map(str, descriptors), str(tmp_path / "shared"), "0", "1"]
        (tmp_path / "shared").mkdir()
        Signs(tmp_path / "shared" / "signs", 1)
        worker = subprocess.Popen(
            [sys.executable, "-m", "xcite.server.worker", *arguments], pass_fds=descriptors
        )
        theirs.close()
        send(ours, Settings(str(bundle), threads=1).text().encode())
        assert select.select([ours], [], [], 60)[0]
    assert worker.wait(20) in (0, -signal.SIGTERM)  # before or after it listens to signals


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_workers_that_cannot_start_are_one_line(bundle, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(bundle, broken)
    info = read_info(broken)
    (broken / "model.onnx").write_bytes(b"no model")
    seal_folder(broken, info)
    for folder, words in ((broken, "xcite: "), (tmp_path, "not a bundle")):
        command = [sys.executable, "-m", "xcite.cli", "serve", str(folder), "--workers", "2"]
        run = subprocess.run(
            [*command, "--port", "0"],
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert run.returncode == 2
        assert run.stderr.count("\n") == 1, run.stderr
        assert words in run.stderr
        assert run.stdout == ""


def test_without_a_place_to_count_it_says_so(monkeypatch):
    def full(**_):
        raise OSError("read-only file system")

    monkeypatch.setattr(workers.tempfile, "mkdtemp", full)
    with pytest.raises(XciteError, match="--tmpfs /tmp"):
        workers._shared_folder()


def test_signs_are_seen_by_all(tmp_path):
    mine = Signs(tmp_path / "signs", 2)
    theirs = Signs(tmp_path / "signs", 2)
    mine.give(0)
    theirs.give(1)
    assert mine.trouble() is None
    assert theirs.silence(0) < 5
    theirs._times[1] -= LATE + 1
    assert "worker 2 of 2 has answered nothing for 31 s" in mine.trouble()
