"""Long listings in the cache: used while nothing has changed, and never trusted when damaged."""

import io
import os
import tarfile
import time

import numpy as np
import pytest

from xcite.data.sources import index, open_source
from xcite.data.sources.folder import _listed as listing_of
from xcite.data.sources.index import indexed


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "LEAST", 3)
    for name in ("cat", "caf\udce9"):
        for number in range(3):
            path = tmp_path / "pictures" / name / f"{number}\udce9.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
    put_back(tmp_path / "pictures")
    return tmp_path / "pictures"


def put_back(folder):
    """Make everything old enough to be trusted."""
    past = time.time() - 100
    for place in [folder, *folder.rglob("*")]:
        os.utime(place, (past, past))


def count(monkeypatch):
    from xcite.data.sources import folder as module

    made, listed = [], module._listed
    monkeypatch.setattr(module, "_listed", lambda root: made.append(root) or listed(root))
    return made


def kept(folder):
    return list((folder.parent / "cache" / "xcite" / "listings").glob("*.listing"))


def test_an_unchanged_folder_is_listed_once(folder, monkeypatch):
    made = count(monkeypatch)
    first, second = open_source(folder), open_source(folder)
    assert len(made) == 1
    assert second.fingerprint() == first.fingerprint()
    assert list(second.files()) == list(first.files())
    assert second.class_names == first.class_names == ["caf\udce9", "cat"]
    np.testing.assert_array_equal(first.labels, second.labels)
    assert vars(second.found) == vars(first.found)
    # other classes are asked of the same listing
    assert open_source(folder, classes=["cat", "emu", "caf\udce9"]).labels[0] == 2
    assert len(made) == 1


def test_a_change_anywhere_is_noticed(folder, monkeypatch):
    made = count(monkeypatch)
    before = open_source(folder)
    (folder / "cat" / "9.png").write_bytes(b"x")
    after = open_source(folder)
    assert len(made) == 2
    assert len(after) == len(before) + 1
    # a folder that has just changed may change again within the same tick of the clock
    open_source(folder)
    assert len(made) == 3
    (folder / "emu").mkdir()
    assert open_source(folder).found.warnings


@pytest.mark.parametrize("place", [0, 31, 40, 200, -1, -9])
def test_a_damaged_index_is_made_anew(folder, monkeypatch, place):
    made = count(monkeypatch)
    wanted = open_source(folder).fingerprint()
    (path,) = kept(folder)
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)
    assert open_source(folder).fingerprint() == wanted
    path.write_bytes(data[: len(data) // 2])
    assert open_source(folder).fingerprint() == wanted
    path.write_bytes(b"")
    assert open_source(folder).fingerprint() == wanted
    assert len(made) == 4
    open_source(folder)
    assert len(made) == 4


def test_without_a_place_for_a_cache_everything_works(folder, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(open_source(folder)) == 6
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(index, "user_cache", lambda name: None)
    assert len(open_source(folder)) == 6


def test_only_the_indexes_used_last_are_kept(folder, monkeypatch):
    monkeypatch.setattr(index, "_KEPT", 2)
    for number in range(4):
        indexed("test", str(number), [], lambda: listing_of(str(folder)))
    assert len(kept(folder)) == 2


def test_class_names_beside_shards_are_watched(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "LEAST", 3)
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "0.tar", "w") as archive:
        for number in range(3):
            for name in (f"{number}.png", f"{number}.cls"):
                member = tarfile.TarInfo(name)
                member.size = 1
                archive.addfile(member, io.BytesIO(b"%d" % number))
    (shards / "_info.json").write_text('{"names": ["a", "b", "c"]}')
    put_back(shards)
    assert open_source(shards / "0.tar").class_names == ["a", "b", "c"]
    assert len(kept(shards)) == 1
    (shards / "_info.json").write_text('{"names": ["x", "y", "z"]}')
    assert open_source(shards / "0.tar").class_names == ["x", "y", "z"]
    (shards / "_info.json").unlink()
    assert open_source(shards / "0.tar").class_names == ["0", "1", "2"]
