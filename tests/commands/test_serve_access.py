"""Where a server stands and who may ask: a path behind a proxy, other origins, numbers, HEAD."""

import json
import logging
import re

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("openvino")
testing = pytest.importorskip("starlette.testclient")

from serving import make_bundle, photograph  # noqa: E402

from xcite.errors import XciteError  # noqa: E402
from xcite.runtime.predictor import Predictor  # noqa: E402
from xcite.server.access import Access  # noqa: E402
from xcite.server.guard import Handled  # noqa: E402
from xcite.server.pages import page_file  # noqa: E402
from xcite.server.serve import create_app  # noqa: E402
from xcite.server.serving import Settings, guarded, log_line, open_routes  # noqa: E402


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor(make_bundle(tmp_path_factory.mktemp("access") / "bundle"), threads=1)


@pytest.fixture(scope="module")
def proxied(predictor):
    app = create_app(predictor, root_path="models/xcite/", token="s3cret")
    with testing.TestClient(app) as client:
        client.headers["authorization"] = "Bearer s3cret"
        yield client


@pytest.fixture(scope="module")
def client(predictor):
    """Open to two origins, without a token."""
    origins = ["https://shop.example", "HTTP://localhost:3000/"]
    with testing.TestClient(create_app(predictor, origins=origins)) as client:
        yield client


def _ask(client, path="/predict", **headers):
    return client.post(path, files={"file": ("a.png", photograph())}, headers=headers)


@pytest.mark.parametrize("root", ["", "/models/xcite"], ids=["taken off", "left on"])
def test_behind_a_proxy_under_a_path(proxied, root):
    for path in ("/", "/page.css", "/page.js", "/docs", "/openapi.json", "/health", "/info"):
        assert proxied.get(root + path).status_code == 200, path
    assert _ask(proxied, f"{root}/predict").status_code == 200
    assert proxied.get(f"{root}/nothing").status_code == 404
    assert proxied.get(f"{root}/openapi.json").json()["servers"] == [{"url": "/models/xcite"}]
    # what needs no token is told by the path below the root
    assert proxied.get(f"{root}/health", headers={"authorization": ""}).status_code == 200
    assert proxied.get(f"{root}/info", headers={"authorization": ""}).status_code == 401


def test_paths_beside_the_root_are_no_addresses(proxied):
    for path in ("/models", "/models/xcitex/health", "/models/xcite//health", "/other/health"):
        assert proxied.get(path, follow_redirects=False).status_code == 404, path


def test_the_page_is_behind_a_slash(proxied):
    answer = proxied.get("/models/xcite", follow_redirects=False)
    assert answer.status_code == 308
    assert answer.headers["location"] == "xcite/"  # relative, so it works behind both proxies
    assert proxied.get("/models/xcite").url.path == "/models/xcite/"


def test_metrics_name_addresses_without_the_root(proxied):
    proxied.get("/models/xcite/info")
    assert 'path="/info",status="200"' in proxied.get("/metrics").text


def test_links_work_under_any_path_without_an_option(client):
    """Whatever the prefix is that a proxy takes off, links lead back to it."""
    pages = [client.get("/").text, client.get("/docs").text, page_file("server/page.js")]
    links = [
        link
        for text in pages
        for link in re.findall(r"""(?:href=|src=|ask\()["'`]([^"'`]+)""", text)
        if not link.startswith("data:")
    ]
    assert {"page.css", "page.js", "docs", "openapi.json", "./", "info"} <= set(links)
    assert any(link.startswith("predict?") for link in links)
    assert not [link for link in links if link.startswith("/") or "//" in link]
    assert "servers" not in client.get("/openapi.json").json()


@pytest.mark.parametrize("root", ["/a b", "/a//b", "/../x", "/a?b", "/predict", "health", "/\n"])
def test_a_root_path_that_cannot_be_one_is_refused(root):
    with pytest.raises(XciteError, match="root path"):
        Access(root_path=root)


PREFLIGHT = {"access-control-request-method": "POST", "origin": "https://shop.example"}


def _cors(answer):
    return {name: text for name, text in answer.headers.items() if "access-control" in name}


def test_nothing_is_said_to_other_origins_by_default(predictor):
    with testing.TestClient(create_app(predictor)) as client:
        answer = _ask(client, origin="https://shop.example")
        assert answer.status_code == 200
        assert _cors(answer) == {}
        assert "vary" not in answer.headers
        assert client.options("/predict", headers=PREFLIGHT).status_code == 405


@pytest.mark.parametrize("origin", ["https://shop.example", "http://localhost:3000"])
def test_allowed_origins_may_ask_and_read(client, origin):
    answer = client.options("/predict", headers=PREFLIGHT | {"origin": origin})
    assert answer.status_code == 204
    assert answer.content == b""
    told = _cors(answer)
    assert told["access-control-allow-origin"] == origin
    assert "POST" in told["access-control-allow-methods"]
    assert {"authorization", "content-type", "content-encoding"} <= set(
        told["access-control-allow-headers"].split(", ")
    )
    for answer in (_ask(client, origin=origin), client.get("/no", headers={"origin": origin})):
        assert answer.headers["access-control-allow-origin"] == origin
        assert answer.headers["vary"] == "Origin"
        assert "retry-after" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    [
        "https://shop.example.evil.example",
        "http://shop.example",
        "https://shop.example:444",
        "null",
    ],
)
def test_other_origins_are_not(client, origin):
    answer = client.options("/predict", headers=PREFLIGHT | {"origin": origin})
    assert answer.status_code == 403
    assert _cors(answer) == {}
    assert _cors(_ask(client, origin=origin)) == {}
    assert _ask(client, origin=origin).headers["vary"] == "Origin"


def test_a_preflight_needs_no_token_and_what_follows_does(predictor):
    app = create_app(predictor, origins=["*"], token="s3cret", hosts=["here.example"])
    with testing.TestClient(app, base_url="http://here.example") as client:
        answer = client.options("/predict", headers=PREFLIGHT)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers
        refused = _ask(client, origin="https://any.example")
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "*"  # its words can be read
        assert client.options("/predict").status_code == 401  # no preflight
        elsewhere = client.options("/predict", headers=PREFLIGHT | {"host": "evil.example"})
        assert elsewhere.status_code == 421


@pytest.mark.parametrize(
    "origin",
    ["shop.example", "https://", "https://a.example/path", "null", "", "https://a b", "**"],
)
def test_what_is_no_origin_is_refused(origin):
    with pytest.raises(XciteError, match="is not an origin"):
        Access(origins=[origin])


@pytest.mark.parametrize(
    "path", ["/", "/page.css", "/page.js", "/docs", "/openapi.json", "/health"]
)
def test_head_is_get_without_a_body(client, path):
    head, get = client.head(path), client.get(path)
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == get.headers["content-length"]
    assert head.headers["content-type"] == get.headers["content-type"]


def test_head_of_what_takes_post_is_refused(client):
    answer = client.head("/predict")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert "GET or HEAD" in client.post("/health").json()["error"]


def test_every_answer_has_a_number(client):
    mine = client.get("/health", headers={"x-request-id": "proxy-1.2_3"})
    assert mine.headers["x-request-id"] == "proxy-1.2_3"
    numbers = {client.get("/no").headers["x-request-id"] for _ in range(3)}
    assert len(numbers) == 3
    for wrong in ("a b", "x" * 65, "", "é".encode().decode("latin-1")):
        answer = client.get("/no", headers={"x-request-id": wrong.encode("latin-1")})
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


def test_a_failure_is_told_by_its_number(predictor, caplog):
    class Failing(Predictor):
        broken = False

        def run(self, images):
            if self.broken:
                raise RuntimeError("out of luck")
            return super().run(images)

    failing = Failing(predictor.bundle, threads=1)
    with testing.TestClient(create_app(failing), raise_server_exceptions=False) as client:
        failing.broken = True
        with caplog.at_level(logging.ERROR):
            answer = _ask(client, **{"x-request-id": "number-7"})
    assert "request number-7" in answer.json()["error"]
    assert "request number-7 failed" in caplog.text


def test_the_access_log_has_one_line_a_request(predictor, capsys):
    from xcite.server.limits import Limits

    routes = open_routes(predictor, Limits())
    app = guarded(routes, Access(), access_log=True)
    with testing.TestClient(app) as client:
        client.get("/health?secret=1", headers={"x-request-id": "n1"})
        client.get("/%0a%1b[31mred")
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\S+Z testclient GET /health 200 [\d.]+ms id=n1", first)
    assert "\\n\\x1b[31mred 404" in second or "\\u000a" in second
    long = log_line(Handled("X" * 99, "/" * 999, 405, 0.1, "n", "::1"))
    assert len(long) < 300


def test_settings_survive_the_way_to_a_worker():
    access = Access("s3cret", ["here"], ["https://a.example"], "/x")
    settings = Settings("bundle", access, mode="throughput", threads=2, access_log=True)
    again = Settings.of_text(settings.text())
    assert json.loads(again.text()) == json.loads(settings.text())
    assert again.access.origins == access.origins
    assert again.limits == settings.limits


def test_the_description_names_every_way_in(client):
    schema = client.get("/openapi.json").json()
    body = schema["paths"]["/predict"]["post"]["requestBody"]
    kinds = ["multipart/form-data", "image/*", "application/octet-stream", "application/json"]
    assert list(body["content"]) == kinds
    page = client.get("/docs").text
    assert all(f"<code>{kind}</code>" in page for kind in kinds)
    # an answer of each described status is a Problem, so the description and the answers agree
    answer = client.post("/predict", json={"image": "?"})
    assert set(answer.json()) <= set(schema["components"]["schemas"]["Problem"]["properties"])


@pytest.mark.parametrize(("top", "status"), [(1, 200), (3, 200), (7, 200), (99, 200), (0, 422)])
def test_top(client, top, status):
    answer = _ask(client, f"/predict?top={top}")
    assert answer.status_code == status
    if status == 200:
        assert len(answer.json()["pictures"][0]["predictions"]) == min(top, 7)
