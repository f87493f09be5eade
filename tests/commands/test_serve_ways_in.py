"""Every way in which clients send pictures: base64 in JSON, forms of all kinds, compressed bodies.

Hostile bodies of each kind are refused in bounded time and memory.
"""

import base64
import gzip
import io
import json
import resource
import time
import zlib

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("openvino")
testing = pytest.importorskip("starlette.testclient")

from serving import make_bundle, photograph  # noqa: E402

from xcite.runtime.predictor import Predictor  # noqa: E402
from xcite.server.limits import Limits  # noqa: E402
from xcite.server.serve import create_app  # noqa: E402

PICTURES = [photograph(seed) for seed in range(3)]
TEXTS = [base64.b64encode(picture).decode() for picture in PICTURES]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor(make_bundle(tmp_path_factory.mktemp("ways") / "bundle"), threads=1)


@pytest.fixture(scope="module")
def client(predictor):
    limits = Limits(max_bytes=16 * 2**20, max_files=8)
    with testing.TestClient(create_app(predictor, limits)) as client:
        yield client


@pytest.fixture(scope="module")
def best(predictor):
    return [predictor.predict(picture)[0][0][0] for picture in PICTURES]


def _names(answer):
    assert answer.status_code == 200, answer.text
    return [entry["predictions"][0]["name"] for entry in answer.json()["pictures"]]


def _post(client, body, kind="application/json", **headers):
    names = {name.replace("_", "-"): text for name, text in headers.items()}
    return client.post("/predict", content=body, headers={"content-type": kind, **names})


def _lines(text):
    return "\r\n".join(text[k : k + 76] for k in range(0, len(text), 76))


@pytest.mark.parametrize(
    ("told", "count"),
    [
        ({"image": TEXTS[0]}, 1),
        ({"image": f"data:image/png;base64,{TEXTS[0]}"}, 1),
        ({"image": f"data:image/png;name=a;base64,{TEXTS[0]}"}, 1),
        ({"image": _lines(TEXTS[0])}, 1),
        ({"image": TEXTS[0].rstrip("=")}, 1),
        ({"image": base64.urlsafe_b64encode(PICTURES[0]).decode()}, 1),
        ({"images": TEXTS}, 3),
        ({"images": TEXTS[0]}, 1),
        ({"image": TEXTS}, 3),
        ({"images": [{"image": text} for text in TEXTS]}, 3),
        (TEXTS, 3),
        (TEXTS[0], 1),
        ([{"image": TEXTS[0]}, TEXTS[1]], 2),
        ({"image": TEXTS[0], "id": 5, "more": {"a": [1, 2]}}, 1),
    ],
    ids=range(14),
)
def test_base64_in_json(client, best, told, count):
    assert _names(client.post("/predict", json=told)) == best[:count]


def test_json_of_other_languages(client, best):
    # PHP escapes slashes; a mark of UTF-8 and UTF-16 come from .NET
    text = json.dumps({"image": TEXTS[0]}).replace("/", "\\/")
    for body in (text.encode(), text.encode("utf-8-sig"), text.encode("utf-16")):
        assert _names(_post(client, body, "application/vnd.api+json; charset=utf-8")) == best[:1]


def test_pictures_keep_their_order_their_names_and_their_own_errors(client, best):
    told = [
        {"image": TEXTS[0], "name": "a.png"},
        "?!",
        {"image": "https://elsewhere.example/cat.jpg", "name": "half \ud800"},
        base64.b64encode(b"words").decode(),
        "data:image/svg+xml,%3Csvg/%3E",
        TEXTS[1],
    ]
    answer = _post(client, json.dumps(told).encode(), "application/json")
    assert answer.status_code == 200
    entries = answer.json()["pictures"]
    files = ["a.png", "picture 2", "half ?", "picture 4", "picture 5", "picture 6"]
    assert [entry["file"] for entry in entries] == files
    assert [entries[k]["predictions"][0]["name"] for k in (0, 5)] == best[:2]
    assert entries[1]["error"] == "picture 2: not base64"
    assert "fetches no addresses" in entries[2]["error"]
    assert entries[3]["error"].startswith("picture 4: not a picture")
    assert "not base64" in entries[4]["error"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "not JSON"),
        (b'{"image": ', 400, "not JSON"),
        (b"\xff\xfe\xfd", 400, "not JSON"),
        (b"[]", 422, "no picture"),
        (b"{}", 422, "as expected"),
        (b"null", 422, "as expected"),
        (b'{"image": 5}', 422, "as expected"),
        (b'{"images": [["a"]]}', 422, "as expected"),
        (b'{"image": "aaaa", "name": {}}', 422, "as expected"),
        (b'{"image": "aaaa", "top": 3}', 422, "top belongs in the address"),
        (b'{"images": ["aaaa"], "attention": 1}', 422, "attention belongs in the address"),
        (json.dumps(9 * ["aaaa"]).encode(), 413, "more than 8 files"),
        (b'{"image": ' + b"9" * 100_000 + b"}", 400, "not JSON"),
    ],
    ids=range(13),
)
def test_json_that_is_not_understood_says_what_is_expected(client, body, status, words):
    answer = _post(client, body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]
    if status in (400, 422) and "belongs" not in words:
        assert '{"images": [BASE64, ...]}' in answer.json()["error"]


def _part(data, *heads):
    return b"\r\n".join([b"--b", *(head.encode() for head in heads), b"", data, b""])


def _form(*parts, kind="multipart/form-data; boundary=b"):
    return b"".join(parts) + b"--b--\r\n", kind


DISPOSITION = 'Content-Disposition: form-data; name="file"'


@pytest.mark.parametrize(
    ("heads", "name"),
    [
        ([f'{DISPOSITION}; filename="a.png"'], "a.png"),
        ([f"{DISPOSITION}; filename=a.png"], "a.png"),
        ([f'{DISPOSITION}; filename="größe.png"'], "größe.png"),
        ([f"{DISPOSITION}; filename*=UTF-8''gr%C3%B6%C3%9Fe.png"], "größe.png"),
        ([f"{DISPOSITION}; filename=\"g.png\"; filename*=utf-8''gr%C3%B6%C3%9Fe.png"], "größe.png"),
        ([f"{DISPOSITION}; filename*=utf-8''gr%C3%B6%C3%9Fe.png; filename=\"g.png\""], "größe.png"),
        ([f"{DISPOSITION}; filename*=iso-8859-1'de'gr%F6%DFe.png"], "größe.png"),
        ([f"{DISPOSITION}; filename*=no-such''gr%C3%B6.png"], "grÃ¶.png"),
        ([f'{DISPOSITION}; filename*0="a-"; filename*1="b.png"'], "a-b.png"),
        ([f'{DISPOSITION}; filename="a;b \\"c\\".png"'], 'a;b "c".png'),
        ([f'{DISPOSITION}; filename=""'], "picture"),
        ([DISPOSITION], "picture"),
        ([DISPOSITION, "Content-Type: image/png"], "picture"),
        (["content-disposition: form-data"], "picture"),
        (["Content-Type: application/octet-stream"], "picture"),
        ([f'{DISPOSITION}; filename="a.png"', "Content-Transfer-Encoding: binary"], "a.png"),
    ],
    ids=range(16),
)
def test_parts_as_common_clients_send_them(client, best, heads, name):
    answer = _post(client, *_form(_part(PICTURES[0], *heads)))
    assert _names(answer) == best[:1]
    assert answer.json()["pictures"][0]["file"] == name


def test_what_base64_without_a_file_name_holds_decides(client, best):
    coding = "Content-Transfer-Encoding: base64"
    field = _part(base64.b64encode("größer".encode()), DISPOSITION, coding)
    answer = _post(client, *_form(field, _part(_lines(TEXTS[1]).encode(), DISPOSITION, coding)))
    assert _names(answer) == best[1:2]


def test_a_form_of_everything(client, best):
    """Fields of several names, text beside pictures, base64 in parts, a form inside the form."""
    inner = _part(PICTURES[2], 'Content-Disposition: file; filename="c.png"').replace(
        b"--b", b"--i"
    )
    body, kind = _form(
        _part(b"some text", 'Content-Disposition: form-data; name="comment"'),
        _part(PICTURES[0], 'Content-Disposition: form-data; name="first"; filename="a.png"'),
        _part(
            _lines(TEXTS[1]).encode(),
            'Content-Disposition: form-data; name="second"; filename="b.png"',
            "Content-Transfer-Encoding: base64",
        ),
        _part(
            inner + b"--i--\r\n",
            'Content-Disposition: form-data; name="third"',
            'Content-Type: multipart/mixed; boundary="i"',
        ),
        _part(f"data:image/png;base64,{TEXTS[0]}".encode(), DISPOSITION),
        _part(b"", f'{DISPOSITION}; filename=""', "Content-Type: application/octet-stream"),
        _part(
            b"=50=4E", f'{DISPOSITION}; filename="q"', "Content-Transfer-Encoding: quoted-printable"
        ),
    )
    answer = _post(client, body, kind)
    assert answer.status_code == 200, answer.text
    *good, last = answer.json()["pictures"]
    assert [entry["file"] for entry in good] == ["a.png", "b.png", "c.png", "picture 4"]
    assert [entry["predictions"][0]["name"] for entry in good] == [*best, best[0]]
    assert "Content-Transfer-Encoding" in last["error"]


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (*_form(_part(b"text", DISPOSITION)), 422, "holds no file"),
        (*_form(_part(b"3", 'Content-Disposition: form-data; name="top"')), 422, "in the address"),
        (*_form(_part(b"", f'{DISPOSITION}; filename=""')), 422, "holds no file"),
        (b"--b\r\n\r\n", "multipart/form-data", 400, "names no boundary"),
        (b"--b\r\n\r\n", f"multipart/form-data; boundary={'b' * 300}", 400, "malformed"),
        (_part(b"x", DISPOSITION), "multipart/form-data; boundary=b", 400, "ends too early"),
        (*_form(_part(b"x", "X: " + "x" * 20_000)), 400, "malformed"),
        (*_form(_part(b"x", *(f"X{k}: x" for k in range(1000)))), 400, "malformed"),
        (
            *_form(_part(b"x", "Content-Type: multipart/mixed; boundary=i")),
            400,
            "malformed",
        ),
        (b"file=cat", "application/x-www-form-urlencoded", 415, "image/* content type"),
        (b"cat", "text/plain", 415, "image/* content type"),
        (b"", "", 422, "the body is empty"),
        (*_form(), 422, "holds no file"),
        (
            _form(_part(b"x", DISPOSITION))[0][:-2],
            "multipart/form-data; boundary=b",
            422,
            "no file",
        ),
        (b"no such boundary", "multipart/form-data; boundary=b", 400, "malformed"),
    ],
    ids=range(15),
)
def test_forms_that_are_not_understood_say_what_is_expected(client, body, kind, status, words):
    answer = _post(client, body, kind)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]


@pytest.mark.parametrize("kind", ["image/png", "IMAGE/X-ANY", "application/octet-stream", ""])
def test_the_body_itself(client, best, kind):
    assert _names(_post(client, PICTURES[0], kind)) == best[:1]


@pytest.mark.parametrize("coding", ["gzip", "X-GZIP", "deflate", "identity"])
@pytest.mark.parametrize("way", ["body", "json", "form"])
def test_compressed_bodies(client, best, coding, way):
    body, kind = {
        "body": (PICTURES[0], "image/png"),
        "json": (json.dumps({"image": TEXTS[0]}).encode(), "application/json"),
        "form": _form(_part(PICTURES[0], f'{DISPOSITION}; filename="a"')),
    }[way]
    compress = {"deflate": zlib.compress, "identity": bytes}.get(coding, gzip.compress)
    assert _names(_post(client, compress(body), kind, content_encoding=coding)) == best[:1]


@pytest.mark.parametrize(
    ("body", "coding", "status", "words"),
    [
        (PICTURES[0], "gzip", 400, "the gzip body is damaged"),
        (gzip.compress(PICTURES[0])[:-9], "gzip", 400, "ends too early"),
        (b"", "gzip", 400, "ends too early"),
        (gzip.compress(PICTURES[0]) + b"more", "gzip", 400, "behind its end"),
        (gzip.compress(b"a" * 17 * 2**20), "gzip", 413, "larger than 16 MiB"),
        (PICTURES[0], "br", 415, "gzip"),
        (gzip.compress(gzip.compress(PICTURES[0])), "gzip, gzip", 415, "gzip"),
    ],
    ids=range(7),
)
def test_compression_that_is_refused(client, body, coding, status, words):
    answer = _post(client, body, "image/png", content_encoding=coding)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]
    assert (answer.headers.get("accept-encoding") == "gzip, deflate") == (status == 415)


MIB = 2**20


@pytest.fixture(scope="module")
def bomb():
    """300 MiB of zeros in a thousandth of that."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb") as file:
        for _ in range(300):
            file.write(bytes(MIB))
    return buffer.getvalue()


HOSTILE = {
    "huge base64": lambda: (b'{"image": "' + b"A" * 15 * MIB + b'"}', "application/json", 422),
    "spaces in base64": lambda: (b'{"image": "' + b" A" * 7 * MIB + b'"}', "application/json", 422),
    "escapes in base64": lambda: (
        b'{"image": "' + b"\\u0041" * 2 * MIB + b'"}',
        "application/json",
        422,
    ),
    "depth": lambda: (b"[" * 15 * MIB, "application/json", 413),
    "depth of objects": lambda: (b'{"image":' * MIB, "application/json", 413),
    "many entries": lambda: (b"[" + b"{}," * 5 * MIB + b"{}]", "application/json", 413),
    "long number": lambda: (b"1." + b"1" * 15 * MIB, "application/json", 422),
    "10,000 parts": lambda: (
        *_form(*(_part(b"x", f'{DISPOSITION}; filename="{k}"') for k in range(10_000))),
        413,
    ),
    "10,000 parts inside a part": lambda: (
        *_form(
            _part(
                b"--i\r\n\r\nx\r\n" * 10_000 + b"--i--",
                "Content-Type: multipart/mixed; boundary=i",
            )
        ),
        413,
    ),
    "ends of lines": lambda: (
        b"--b\r\n" + DISPOSITION.encode() + b"; filename=a\r\n\r\n" + b"\r\n" * 2 * MIB,
        "multipart/form-data; boundary=b",
        400,
    ),
    "quotes in a head": lambda: (
        *_form(_part(b"x", 'Content-Disposition: form-data; name="' + '\\"' * 2000)),
        422,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_end_in_bounded_time_and_memory(client, name):
    body, kind, status = HOSTILE[name]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    answer = _post(client, body, kind)
    assert answer.status_code == status, answer.text[:200]
    assert time.process_time() - started < 5
    # a handful of copies of the body, the test's own among them
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 160 * 1024
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "kind", ["image/png", "application/json", "multipart/form-data; boundary=b"]
)
def test_gzip_bombs_are_cut_off(client, bomb, kind):
    assert len(bomb) < MIB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    answer = _post(client, bomb, kind, content_encoding="gzip")
    assert answer.status_code in (400, 413)
    assert time.process_time() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 80 * 1024
    assert client.get("/health").status_code == 200
