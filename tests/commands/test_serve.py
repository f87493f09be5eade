"""The server, in this process: answers, limits, refusals, token, headers, metrics, docs."""

import io
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("openvino")
testing = pytest.importorskip("starlette.testclient")

from serving import CLASS_NAMES, make_bundle, photograph  # noqa: E402

from xcite.errors import XciteError  # noqa: E402
from xcite.runtime.predictor import Predictor  # noqa: E402
from xcite.server.limits import Limits  # noqa: E402
from xcite.server.serve import create_app  # noqa: E402


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor(make_bundle(tmp_path_factory.mktemp("serve") / "bundle"), threads=1)


@pytest.fixture(scope="module")
def client(predictor):
    limits = Limits(max_bytes=200_000, max_pixels=1_000_000, max_files=4)
    with testing.TestClient(create_app(predictor, limits)) as client:
        yield client


def _files(*pictures):
    return [("file", (f"{i}.png", data, "image/png")) for i, data in enumerate(pictures)]


def test_answers_are_the_predictors_own(client, predictor):
    pictures = [photograph(seed, kind=kind) for seed, kind in enumerate(("PNG", "JPEG", "WEBP"))]
    answer = client.post("/predict", files=_files(*pictures), params={"top": 7})
    assert answer.status_code == 200
    for entry, expected in zip(
        answer.json()["pictures"], predictor.predict(pictures, top=7), strict=True
    ):
        assert [guess["name"] for guess in entry["predictions"]] == [name for name, _ in expected]
        # The batch may be cut differently: float32 sums in another order.
        np.testing.assert_allclose(
            [guess["probability"] for guess in entry["predictions"]],
            [share for _, share in expected],
            rtol=1e-4,
        )
        assert "attention" not in entry
        assert "error" not in entry


def test_a_picture_may_be_the_body_itself(client, predictor):
    picture = photograph(5)
    answer = client.post("/predict", content=picture, headers={"content-type": "image/png"})
    [entry] = answer.json()["pictures"]
    assert entry["predictions"][0]["name"] == predictor.predict(picture)[0][0][0]
    assert len(entry["predictions"]) == 5


def test_attention_is_the_last_layers_mean_over_the_crop_the_model_saw(client, predictor):
    picture = photograph(1, width=80, height=60)
    answer = client.post("/predict?attention=1", files=_files(picture))
    attention = answer.json()["pictures"][0]["attention"]
    images = predictor.images(predictor.pixels(picture)[None])
    expected = predictor.attention(images)[0, -1, :, 1:].mean(axis=0)
    assert (attention["rows"], attention["columns"]) == (4, 4)
    # values are rounded to 4 places
    np.testing.assert_allclose(attention["values"], expected / expected.max(), atol=1e-3)
    # the shorter side, 60, times crop_ratio 0.875 is 52.5 pixels of the picture
    seen = attention["seen"]
    assert seen["width"] * 80 == pytest.approx(52.5)
    assert seen["height"] * 60 == pytest.approx(52.5)
    assert seen["left"] == pytest.approx((1 - seen["width"]) / 2)


def test_oblong_inputs_are_served_as_predicted(tmp_path):
    predictor = Predictor(make_bundle(tmp_path / "bundle", (24, 40)), threads=1)
    picture = photograph(1, width=80, height=60)
    with testing.TestClient(create_app(predictor)) as client:
        assert client.get("/info").json()["preprocessing"]["size"] == [24, 40]
        answer = client.post("/predict?attention=1", files=_files(picture))
    entry = answer.json()["pictures"][0]
    assert entry["predictions"][0]["name"] == predictor.predict(picture)[0][0][0]
    attention = entry["attention"]
    assert (attention["rows"], attention["columns"]) == (3, 5)
    # all of the width, 80, times crop_ratio 0.875, and as much of the height as 24 to 40
    assert attention["seen"]["width"] * 80 == pytest.approx(70)
    assert attention["seen"]["height"] * 60 == pytest.approx(42)


def _bomb():
    buffer = io.BytesIO()  # 1.2 million pixels in a few thousand bytes
    Image.new("RGB", (1200, 1000)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"just words", "not a picture"),
        (photograph(0)[:300], "damaged"),
        (b"", "not a picture"),
        (_bomb(), "more than the 1000000"),
    ],
    ids=["text", "truncated", "empty", "too many pixels"],
)
def test_what_is_no_picture_is_refused_in_words(client, data, words):
    answer = client.post("/predict", files=_files(data))
    assert answer.status_code == 422
    assert words in answer.json()["error"]
    assert answer.json()["pictures"][0]["file"] == "0.png"
    assert words in answer.json()["pictures"][0]["error"]


def test_a_broken_picture_does_not_cost_the_others_their_answer(client):
    answer = client.post("/predict", files=_files(photograph(0), b"broken", photograph(2)))
    assert answer.status_code == 200
    first, second, third = answer.json()["pictures"]
    assert first["predictions"]
    assert third["predictions"]
    assert "not a picture" in second["error"]


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"files": _files(b"x" * 300_000)}, 413, "larger than"),
        ({"files": _files(*[b"x"] * 5)}, 413, "more than 4 files"),
        ({"json": {"picture": "cat"}}, 422, "multipart/form-data"),
        ({"data": {"file": "cat"}}, 415, "multipart/form-data"),
        ({"content": b"", "headers": {"content-type": "image/png"}}, 422, "empty"),
        (
            {"content": b"--x", "headers": {"content-type": "multipart/form-data"}},
            400,
            "malformed",
        ),
        (
            {
                "content": b"no such boundary",
                "headers": {"content-type": "multipart/form-data; boundary=y"},
            },
            400,
            "malformed",
        ),
        ({"files": _files(photograph(0)), "params": {"top": 0}}, 422, "top"),
        ({"files": _files(photograph(0)), "params": {"attention": "perhaps"}}, 422, "attention"),
    ],
)
def test_requests_that_do_not_fit_are_refused_in_words(client, request_, status, words):
    answer = client.post("/predict", **request_)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]


def test_bytes_are_counted_while_they_arrive(client):
    sent = 0

    def endless():
        nonlocal sent
        while sent < 100_000_000:
            sent += 50_000
            yield b"x" * 50_000

    # a generator is sent in chunks, without a length that could be refused beforehand
    answer = client.post("/predict", content=endless(), headers={"content-type": "image/png"})
    assert answer.status_code == 413


def test_giant_headers_are_refused(client):
    answer = client.get("/", headers={"x-long": "x" * 20_000})
    assert answer.status_code == 431
    assert "too large" in answer.json()["error"]


def test_wrong_methods_and_addresses(client):
    answer = client.get("/predict")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert "use POST" in answer.json()["error"]
    assert client.delete("/").status_code == 405
    assert client.get("/etc/passwd").status_code == 404
    assert client.get("/..%2fserver.py").status_code == 404


def test_requests_at_the_same_time_share_batches(predictor):
    limits = Limits(batch=8, wait=0.1)
    with testing.TestClient(create_app(predictor, limits)) as client:
        pictures = [photograph(seed) for seed in range(16)]
        alone = [predictor.predict(picture)[0][0][0] for picture in pictures]
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda p: client.post("/predict", files=_files(p)), pictures))
        best = [a.json()["pictures"][0]["predictions"][0]["name"] for a in answers]
        assert best == alone
        metrics = client.get("/metrics").text
    batches = float(re.search(r"xcite_batch_pictures_count (\S+)", metrics)[1])
    assert float(re.search(r"xcite_batch_pictures_sum (\S+)", metrics)[1]) == 16
    assert batches <= 8


class _Held(Predictor):
    """The predictor, waiting for leave before it runs."""

    def __init__(self, bundle):
        super().__init__(bundle, threads=1)
        self.leave = threading.Event()
        self.leave.set()

    def run(self, images):
        assert self.leave.wait(20)
        return super().run(images)


def test_a_full_queue_says_when_to_come_back(predictor):
    held = _Held(predictor.bundle)
    with testing.TestClient(create_app(held, Limits(queue=3))) as client:
        held.leave.clear()
        with ThreadPoolExecutor(3) as pool:
            waiting = [
                pool.submit(client.post, "/predict", files=_files(photograph(seed)))
                for seed in range(3)
            ]
            while "xcite_queue_pictures 3.0" not in client.get("/metrics").text:
                pass
            refused = client.post("/predict", files=_files(photograph(9)))
            assert client.get("/health").status_code == 200
            held.leave.set()
            assert [future.result().status_code for future in waiting] == [200] * 3
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "busy" in refused.json()["error"]
        assert client.post("/predict", files=_files(photograph(9))).status_code == 200


def test_time_is_limited_and_the_server_goes_on(predictor):
    held = _Held(predictor.bundle)
    with testing.TestClient(create_app(held, Limits(timeout=0.3))) as client:
        held.leave.clear()
        late = client.post("/predict", files=_files(photograph(0)))
        assert late.status_code == 503
        assert late.headers["retry-after"] == "1"
        held.leave.set()
        assert client.post("/predict", files=_files(photograph(0))).status_code == 200


def test_token(predictor):
    with testing.TestClient(create_app(predictor, token="s3cret")) as client:
        for path in ("/info", "/metrics", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 401
        for wrong in (
            "",
            "Bearer",
            "Bearer s3cre",
            "Bearer s3crett",
            "Basic s3cret",
            "Bearer \xe9",
        ):
            answer = client.post(
                "/predict",
                files=_files(photograph(0)),
                headers={"authorization": wrong.encode("latin-1")},
            )
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "token" in answer.json()["error"]
        right = {"authorization": "Bearer s3cret"}
        assert client.post("/predict", files=_files(photograph(0)), headers=right).is_success
        assert client.get("/info", headers=right).is_success
        for path in ("/", "/page.js", "/page.css", "/health"):
            assert client.get(path).is_success


def test_info_and_health(client):
    assert client.get("/health").json() == {"status": "ok"}
    info = client.get("/info").json()
    assert info["classes"] == CLASS_NAMES
    assert info["preprocessing"]["size"] == 32
    assert info["limits"] == {"max_bytes": 200_000, "max_pixels": 1_000_000, "max_files": 4}
    assert info["model"]["precision"] == "f32"
    assert "provenance" not in info["model"]  # it may name folders of the machine


def test_metrics_keep_strangers_paths_out(client):
    client.get("/one-of-a-million-addresses")
    client.request("INVENTED", "/predict")
    text = client.get("/metrics").text
    assert 'path="other",status="404"' in text
    assert 'method="other",path="/predict",status="405"' in text
    assert "million" not in text
    assert "INVENTED" not in text


@pytest.mark.parametrize("path", ["/", "/docs", "/page.css", "/page.js", "/openapi.json", "/nope"])
def test_nothing_comes_from_outside_and_headers_are_strict(client, path):
    answer = client.get(path)
    # only names of standards may look like an address, none is ever fetched
    assert not re.search(r"(https?:)?//(?!127\.0\.0\.1)[a-z]+\.", answer.text)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_documentation_names_every_call(client):
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/predict", "/health", "/info", "/metrics"}
    predict = schema["paths"]["/predict"]["post"]
    assert "multipart/form-data" in predict["requestBody"]["content"]
    assert {"200", "401", "413", "422", "429"} <= set(predict["responses"])
    page = client.get("/docs").text
    assert "POST /predict" in page
    assert "<script" not in page


def test_a_failing_model_is_an_answer_in_words(predictor):
    class Failing(Predictor):
        broken = False

        def run(self, images):
            if self.broken:
                raise RuntimeError("out of luck")
            return super().run(images)

    failing = Failing(predictor.bundle, threads=1)
    app = create_app(failing)
    with testing.TestClient(app, raise_server_exceptions=False) as client:
        failing.broken = True
        answer = client.post("/predict", files=_files(photograph(0)))
        assert answer.status_code == 500
        assert "log" in answer.json()["error"]
        assert "luck" not in answer.text
        failing.broken = False
        assert client.post("/predict", files=_files(photograph(0))).is_success


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("pictures.example", 200),
        ("PICTURES.example:8000", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("elsewhere.example", 421),
        ("pictures.example.elsewhere.example", 421),
        ("127.0.0.1:8000", 421),
        ("", 421),
    ],
)
def test_only_allowed_names_are_answered(predictor, name, status):
    app = create_app(predictor, hosts=["Pictures.example", "[::1]"])
    client = testing.TestClient(app)
    assert client.get("/info", headers={"host": name}).status_code == status
    assert client.get("/health", headers={"host": name}).status_code != 421


def test_an_empty_token_is_refused(predictor):
    with pytest.raises(XciteError, match="the token is empty"):
        create_app(predictor, token=" ")
