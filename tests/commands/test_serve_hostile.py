"""Pictures that would take minutes or gigabytes: refused in bounded time, others are answered."""

import io
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("openvino")
testing = pytest.importorskip("starlette.testclient")

from serving import (  # noqa: E402
    large_png,
    make_bundle,
    many_chunks,
    photograph,
    repeated_scans,
)

from xcite.data.jpeg_scans import jpeg_scans  # noqa: E402
from xcite.runtime.predictor import Predictor  # noqa: E402
from xcite.server import decoders  # noqa: E402
from xcite.server.limits import Limits  # noqa: E402
from xcite.server.serve import create_app  # noqa: E402


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor(make_bundle(tmp_path_factory.mktemp("hostile") / "bundle"), threads=1)


@pytest.fixture(scope="module")
def client(predictor):
    with testing.TestClient(create_app(predictor)) as client:
        yield client


def _ask(client, *pictures, **options):
    files = [("file", ("a.png", data)) for data in pictures]
    started = time.monotonic()
    answer = client.post("/predict", files=files, **options)
    return answer, time.monotonic() - started


def _processes(parent):
    children = Path(f"/proc/{parent}/task").glob("*/children")
    found = [int(child) for path in children for child in path.read_text().split()]
    return {
        pid
        for pid in found
        if b"xcite.server.decoding_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    }


class _Answered:
    """Ordinary pictures, asked again and again while something else is going on."""

    def __init__(self, client):
        self._client, self._end = client, threading.Event()
        self.seconds, self.wrong = [], []

    def __enter__(self):
        def ask():
            while not self._end.is_set():
                answer, seconds = _ask(self._client, photograph(len(self.seconds)))
                self.seconds.append(seconds)
                if answer.status_code != 200:
                    self.wrong.append(answer.text)

        self._thread = threading.Thread(target=ask)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join(60)


def test_scans_are_counted():
    assert jpeg_scans(photograph(kind="JPEG")) == 1
    assert jpeg_scans(repeated_scans(64, 1)) == 10
    assert jpeg_scans(repeated_scans(64, 50)) == 59
    # what lies behind the picture, as phones append films, does not count
    assert jpeg_scans(photograph(kind="JPEG") + 100 * b"\xff\xda\x00\x02") == 1
    assert jpeg_scans(repeated_scans(64, 50)[:-300]) < 59


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (
            lambda: repeated_scans(7000, 3000),
            "scans of 49000000 pixels, refused as a decompression bomb",
        ),
        (lambda: large_png(7100), "pixels are more than the 50000000 that are allowed"),
        (lambda: many_chunks(40_000), "chunks or 67108864 bytes beside the pixels"),
    ],
    ids=["scans", "pixels", "chunks"],
)
def test_bombs_are_refused_at_once(client, picture, words):
    data = picture()
    assert len(data) < 600_000
    for _ in range(2):
        answer, seconds = _ask(client, data)
        assert answer.status_code == 422
        assert words in answer.json()["error"]
        assert answer.json()["error"].startswith("a.png: ")
        assert seconds < 2
    assert _ask(client, photograph())[0].status_code == 200


def test_too_many_pixels_together_are_refused_while_others_are_answered(client):
    form = 32 * [large_png()]
    with _Answered(client) as others:
        answer, seconds = _ask(client, *form)
    assert answer.status_code == 413
    assert "200 megapixels together" in answer.json()["error"]
    assert seconds < 10
    assert others.seconds
    assert not others.wrong
    assert client.get("/health").status_code == 200


def test_a_heavy_picture_is_answered_and_holds_nobody_up(client):
    with _Answered(client) as others:
        answer, seconds = _ask(client, large_png())
    assert answer.status_code == 200
    assert len(others.seconds) > 3
    assert max(others.seconds) < max(2.0, seconds)


def test_decoding_that_takes_too_long_is_ended(predictor):
    limits = Limits(decode_seconds=0.3, decoders=1)
    with testing.TestClient(create_app(predictor, limits)) as client:
        before = _processes(os.getpid())
        answer, seconds = _ask(client, repeated_scans(4000, 90))  # takes seconds
        assert answer.status_code == 422
        assert "longer than the 0.3 s allowed" in answer.json()["error"]
        assert seconds < 10
        assert _ask(client, photograph())[0].status_code == 200
        assert _processes(os.getpid()) - before  # others in their place


def test_memory_is_limited(predictor, monkeypatch):
    monkeypatch.setattr(decoders, "SPARE", 50 * 2**20)
    monkeypatch.setattr(decoders, "BYTES_PER_PIXEL", 1)
    with testing.TestClient(create_app(predictor, Limits(decoders=1))) as client:
        answer, seconds = _ask(client, large_png())
        assert answer.status_code == 422
        assert "not enough memory to decode it" in answer.json()["error"]
        assert seconds < 5
        assert _ask(client, photograph())[0].status_code == 200


def test_only_the_first_of_many_frames_is_decoded(client):
    buffer = io.BytesIO()
    frames = [Image.new("P", (64, 64), k % 255) for k in range(2000)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=20)
    answer, seconds = _ask(client, buffer.getvalue())
    assert answer.status_code == 200
    assert seconds < 2


def test_a_killed_or_stopped_process_is_replaced(predictor, monkeypatch):
    monkeypatch.setattr(decoders, "LIGHT_SECONDS", 0.1)  # a stopped one is waited for thrice that
    before = _processes(os.getpid())
    with testing.TestClient(create_app(predictor, Limits(decoders=1))) as client:
        for number in (signal.SIGKILL, signal.SIGSTOP):
            for pid in _processes(os.getpid()) - before:
                os.kill(pid, number)
            answer, seconds = _ask(client, photograph())
            assert answer.status_code == 200, answer.text
            assert seconds < 20
        assert client.get("/health").json() == {"status": "ok"}
    assert _processes(os.getpid()) == before


def test_health_says_when_nothing_can_be_decoded(predictor, monkeypatch):
    from xcite.server import service

    with testing.TestClient(create_app(predictor, Limits(decoders=1))) as client:
        assert client.get("/health").status_code == 200
        monkeypatch.setattr(service, "FRESH", 0.0)  # an answer before proves nothing any more
        assert client.get("/health").status_code == 200
        before = _processes(os.getpid())
        monkeypatch.setattr(decoders.sys, "executable", "/nonexistent")
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        answer = client.get("/health")
        assert answer.status_code == 503
        assert "nothing can be decoded" in answer.json()["error"]
        assert _ask(client, photograph())[0].status_code == 503
        monkeypatch.undo()
        assert _ask(client, photograph())[0].status_code == 200
        assert client.get("/health").status_code == 200


def test_health_says_when_nothing_is_predicted(predictor, monkeypatch):
    from xcite.server import service

    class Held(Predictor):
        leave = threading.Event()

        def run(self, images):
            assert self.leave.wait(20)
            return super().run(images)

    monkeypatch.setattr(service, "FRESH", 0.0)
    monkeypatch.setattr(service, "PROOF", 0.5)
    held = Held(predictor.bundle, threads=1)
    held.leave.set()
    with testing.TestClient(create_app(held)) as client:
        assert client.get("/health").status_code == 200
        held.leave.clear()
        answer = client.get("/health")
        held.leave.set()
        assert answer.status_code == 503
        assert "nothing was predicted within 0.5 s" in answer.json()["error"]
        assert client.get("/health").status_code == 200
