"""Listings: folders, tar shards, list files and the digits, with damaged and hostile ones."""

import io
import os
import pickle
import socket
import tarfile

import numpy as np
import pytest
from PIL import Image

from xcite.data.decoding import decode
from xcite.data.findings import describe
from xcite.data.sources import Subset, has_split, open_source, read_class_names
from xcite.data.tar_members import tar_members
from xcite.errors import XciteError


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (6, 5), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def add(archive, name, data, kind=tarfile.REGTYPE):
    member = tarfile.TarInfo(name)
    member.size, member.type = len(data), kind
    archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def folder(tmp_path):
    for label, name in enumerate(["cat", "dog", "emu"]):
        for number in range(3):
            path = tmp_path / "pictures" / name / "deep" / f"{number} a.PNG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(10 * label + number))
    (tmp_path / "pictures" / ".hidden").mkdir()
    (tmp_path / "pictures" / "cat" / "notes.txt").write_text("no picture")
    return tmp_path / "pictures"


@pytest.fixture
def shards(tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"train-{shard}.tar", "w") as archive:
            for label, name in enumerate(["cat", "dog", "emu"]):
                add(archive, f"./{name}/{shard}.png", png(10 * label + shard))
            add(archive, "classes.json", b"{}")
    return str(tmp_path / "train-*.tar")


def check(source, number):
    assert len(source) == number == len(source.labels)
    assert source.class_names == ["cat", "dog", "emu"]
    assert source.labels.dtype == np.int64
    copy = pickle.loads(pickle.dumps(source))
    for index in range(number):
        value = decode(copy.read(index))[0, 0, 0]
        assert value // 10 == source.labels[index]
        assert source.class_names[source.labels[index]] in source.name(index)


def test_folder(folder):
    check(open_source(str(folder)), 9)


def test_shards(shards, tmp_path):
    source = open_source(shards)
    check(source, 6)
    assert open_source(str(tmp_path)).fingerprint() == source.fingerprint()
    check(open_source(str(tmp_path / "train-0.tar")), 3)


def test_list_file(folder, tmp_path):
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.PNG"))
    lines = [f"{name} {['cat', 'dog', 'emu'].index(name.parts[0])}" for name in names]
    listing = tmp_path / "list.txt"
    listing.write_text("\n".join(lines) + "\n\n")
    (tmp_path / "names.txt").write_text("cat\ndog\nemu\n")
    names = read_class_names(tmp_path / "names.txt")
    check(open_source(str(listing), root=str(folder), classes=names), 9)
    assert open_source(str(listing), root=folder).class_names == ["0", "1", "2"]
    with pytest.raises(XciteError, match=r"data\.root"):
        open_source(str(listing))
    with pytest.raises(XciteError, match="label 2, but there are 2 classes"):
        open_source(str(listing), root=folder, classes=["cat", "dog"])


@pytest.mark.parametrize("line", ["a.png", "a.png x", "a.png -1", "a.png 99999999999", " 3"])
def test_bad_lines_are_named(line, tmp_path):
    listing = tmp_path / "list.txt"
    listing.write_text(f"b.png 0\n{line}\n")
    with pytest.raises(XciteError, match="line 2"):
        open_source(str(listing))


def test_digits_are_split_once_and_for_all():
    train, held_out = open_source("digits"), open_source("digits", split="validation")
    assert len(train) + len(held_out) == 1797
    assert abs(len(held_out) - 1797 / 5) < 3
    names = {train.name(i).split("/")[1] for i in range(len(train))}
    assert names.isdisjoint(held_out.name(i).split("/")[1] for i in range(len(held_out)))
    shares = np.bincount(held_out.labels) / np.bincount(train.labels)
    assert shares.min() > 0.23  # stratified: 1 to 4 in every class
    assert shares.max() < 0.27
    pixels = train.read(0)
    assert pixels.shape == (8, 8, 3)
    assert max(train.read(i).max() for i in range(20)) == 255
    assert open_source("digits", channels=1).read(0).shape == (8, 8, 1)
    with pytest.raises(XciteError, match="not 'test'"):
        open_source("digits", split="test")


def test_classes_of_a_model_give_the_labels(folder):
    names = ["zebra", "emu", "dog", "cat"]
    source = open_source(folder, classes=names)
    assert source.class_names == names
    assert set(source.labels) == {1, 2, 3}
    with pytest.raises(XciteError, match="class 'emu' is not among the 2"):
        open_source(folder, classes=["cat", "dog"])
    with pytest.raises(XciteError, match="named twice"):
        open_source(folder, classes=["cat", "cat"])


def test_fingerprint_follows_the_listing(folder):
    before = open_source(folder).fingerprint()
    assert open_source(folder).fingerprint() == before
    (folder / "cat" / "new.png").write_bytes(png(1))
    assert open_source(folder).fingerprint() != before


def test_nothing_there(tmp_path):
    with pytest.raises(XciteError, match="no such folder"):
        open_source(str(tmp_path / "missing"))
    with pytest.raises(XciteError, match="no file matches"):
        open_source(str(tmp_path / "*.tar"))
    with pytest.raises(XciteError, match="no pictures"):
        open_source(str(tmp_path))
    (tmp_path / "cat").mkdir()
    with pytest.raises(XciteError, match="'cat' holds no pictures"):
        open_source(str(tmp_path))


def test_damaged_archives(shards, tmp_path):
    path = tmp_path / "train-0.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:700])
    with pytest.raises(XciteError, match=r"train-0\.tar"):
        open_source(str(path))
    path.write_bytes(b"\x1f\x8b" + whole)
    with pytest.raises(XciteError, match="uncompressed tar"):
        open_source(str(path))
    path.write_bytes(whole)
    source = open_source(str(path))
    path.write_bytes(whole[:1600])
    with pytest.raises(XciteError, match="shorter"):
        source.read(2)


def test_only_regular_members_are_listed(tmp_path):
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("cat/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        add(archive, "../../cat/x.png", png(3))
        add(archive, "cat/._x.png", b"resource fork")
    members = list(tar_members(path))
    assert [name for name, _, _ in members] == ["../../cat/x.png", "cat/._x.png"]
    with pytest.raises(XciteError, match=r"'\.\./\.\./cat/x\.png' leads out of the archive"):
        open_source(str(path))
    source = open_source(str(path), outside_root=True)
    assert len(source) == 1
    assert decode(source.read(0))[0, 0, 0] == 3
    with tarfile.open(path, "w") as archive:
        add(archive, "x.png", png(3))
    with pytest.raises(XciteError, match="no class folder"):
        open_source(str(path))


def test_an_archive_written_anew_after_the_listing_is_noticed(shards, tmp_path):
    path = tmp_path / "train-0.tar"
    source = open_source(str(path))
    whole = path.read_bytes()
    source.read(0)
    path.unlink()
    path.write_bytes(whole)
    with pytest.raises(XciteError, match="changed since it was listed"):
        source.read(0)


@pytest.fixture
def listed(tmp_path):
    """A folder with a list in it, and a picture outside."""
    inside = tmp_path / "data"
    inside.mkdir()
    (inside / "in.png").write_bytes(png(1))
    (tmp_path / "out.png").write_bytes(png(2))
    return inside / "list.txt"


@pytest.mark.parametrize("name", ["../out.png", "x/../../out.png", "../data2/out.png", ".."])
def test_listed_paths_stay_in_their_root(listed, name):
    listed.write_text(f"in.png 0\n{name} 1\n")
    with pytest.raises(XciteError, match=r"line 2: .* lies outside .*data\.outside_root"):
        open_source(listed)
    with pytest.raises(XciteError, match="line 2"):
        open_source(listed, root=listed.parent)
    assert len(open_source(listed, outside_root=True)) == 2


def test_absolute_paths_are_the_writers_own_unless_a_root_is_given(listed):
    outside = listed.parent.parent / "out.png"
    listed.write_text(f"{outside} 0\n{listed.parent}/in.png 0\n")
    source = open_source(listed)
    assert decode(source.read(0))[0, 0, 0] == 2
    assert source.notes == [f"1 of 2 pictures of {listed} lie outside {listed.parent}"]
    with pytest.raises(XciteError, match=r"line 1: .* lies outside"):
        open_source(listed, root=listed.parent)
    for root in ("/", listed.parent.parent):
        assert open_source(listed, root=root).notes == ()
    assert open_source(listed, root=listed.parent, outside_root=True).notes


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device", "folder"])
def test_only_files_are_opened(tmp_path, kind):
    place = tmp_path / "cat" / "0.png"
    place.parent.mkdir()
    if kind == "FIFO":
        os.mkfifo(place)
    elif kind == "socket":
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(place))
    elif kind == "device":
        place.symlink_to("/dev/zero")
    else:
        place.mkdir()
        (place.parent / "1.png").write_bytes(png(1))
    (tmp_path / "list.txt").write_text("cat/0.png 0\n")
    sources = [open_source(tmp_path / "list.txt")]
    if kind != "folder":
        sources.append(open_source(tmp_path))
        with pytest.raises(XciteError, match="not a file"):
            read_class_names(place)
    for source in sources:
        with pytest.raises(XciteError, match=rf"0\.png: a {kind}, not a file"):
            source.read(0)
    with pytest.raises(XciteError, match=rf"0\.png: a {kind}, not a file"):
        decode(place)


def test_class_folders_whose_names_are_no_text(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/0.png", "wb") as file:
        file.write(png(0))
    with pytest.raises(XciteError, match="is not UTF-8"):
        open_source(tmp_path)


def test_names_of_pictures_may_hold_anything(tmp_path):
    (tmp_path / "cat").mkdir()
    for name in (b"a\nb.png", b"caf\xe9.png", b"\x1b[31m.png"):
        with open(os.fsencode(tmp_path / "cat") + b"/" + name, "wb") as file:
            file.write(png(7))
    source = open_source(tmp_path)
    assert [decode(source.read(index))[0, 0, 0] for index in range(3)] == [7, 7, 7]


def test_lists_are_read_within_bounds(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"a" * 100_000)
    with pytest.raises(XciteError, match="a line of more than 65536 bytes"):
        open_source(path)


def test_a_folder_with_two_parts(folder, tmp_path):
    parent = tmp_path / "parent"
    parent.mkdir()
    for name in ("Training", "valid"):
        (parent / name).symlink_to(folder)
    assert has_split(parent, "train")
    assert has_split(str(parent), "validation")
    assert not has_split(folder, "validation")
    check(open_source(parent), 9)
    check(open_source(parent, split="validation"), 9)
    (parent / "valid").unlink()
    assert not has_split(parent, "validation")
    with pytest.raises(XciteError, match="a part 'Training', but none called val"):
        open_source(parent, split="validation")


def test_some_pictures_of_a_source(folder, shards):
    for whole in (open_source(folder), open_source(shards)):
        part = Subset(whole, np.array([4, 0]))
        check(part, 2)
        assert part.name(0) == whole.name(4)
        assert part.fingerprint() not in (whole.fingerprint(), Subset(whole, [0, 4]).fingerprint())
    assert next(iter(Subset(open_source(folder), [8, 1]).files())).endswith("emu/deep/2 a.PNG")


def test_existing_paths_win_over_patterns_and_home_is_expanded(folder, tmp_path, monkeypatch):
    odd = tmp_path / "[set] v1"
    folder.rename(odd)
    check(open_source(odd), 9)
    monkeypatch.setenv("HOME", str(tmp_path))
    check(open_source("~/[set] v1"), 9)


def test_what_was_found_in_words(folder):
    (folder / "cat" / "deep" / "0 a.PNG").unlink()
    lines = describe(open_source(folder))
    assert lines == [
        "8 pictures of 3 classes, from 2 (cat) to 3 (dog) each, "
        "sides of 5 to 6 pixels in those looked at"
    ]
