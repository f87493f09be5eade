"""Listing of tar archives: the same as tarfile's where they are sound, bounded where not."""

import io
import os
import tarfile
import time

import pytest

from xcite.data.tar_members import tar_members
from xcite.errors import XciteError


def archive_of(names, form=tarfile.PAX_FORMAT, **headers):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form, **headers) as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode(errors="surrogateescape")))
    return file.getvalue()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_and_places_are_those_of_tarfile(tmp_path, form):
    names = ["a/b.png", "x" * 90 + "/" + "y" * 90, "caf\udce9/z", "ü/ä.png"]
    if form != tarfile.USTAR_FORMAT:
        names += ["deep/" * 300 + "b.png", "ж" * 400]
    path = tmp_path / "t.tar"
    path.write_bytes(archive_of(names, form))
    with tarfile.open(path) as archive:
        wanted = [(m.name, m.offset_data, m.size) for m in archive]
    assert list(tar_members(path)) == wanted
    assert [name for name, _, _ in wanted] == names


def test_global_headers_and_other_kinds_of_members(tmp_path):
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", pax_headers={"comment": "of all"}) as archive:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(f"kind{kind.decode()}")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        member = tarfile.TarInfo("cat/1.png")
        member.size, member.pax_headers = 3, {"SCHILY.xattr.user": "path=../../x"}
        archive.addfile(member, io.BytesIO(b"abc"))
    assert [(name, size) for name, _, size in tar_members(path)] == [("cat/1.png", 3)]


def sparse_tar(path, kind, size):
    """A header that says ``size`` bytes of header follow, and a hole of as many."""
    member = tarfile.TarInfo("long")
    member.type, member.size = kind, size
    with open(path, "wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + size + 2048)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_200_megabytes(tmp_path, kind):
    path = tmp_path / "t.tar"
    sparse_tar(path, kind, 200_000_000)
    started = time.monotonic()
    with pytest.raises(XciteError, match=r"t\.tar: 1 headers of up to 200000000 bytes"):
        list(tar_members(path))
    assert time.monotonic() - started < 1


def test_3000_long_name_headers(tmp_path):
    path = tmp_path / "t.tar"
    long = tarfile.TarInfo("x" * 200 + "/1.png").tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(long[:1024] * 3000 + archive_of(["a/b"]))
    with pytest.raises(XciteError, match=r"t\.tar: 9 headers"):
        list(tar_members(path))


@pytest.mark.parametrize("lost", [1, 512, 10240 - 1536, 10240 - 1500])
def test_archives_cut_short(tmp_path, lost):
    path = tmp_path / "t.tar"
    whole = archive_of(["a/1", "a/2"])  # two blocks each, filled up to 10,240 bytes
    path.write_bytes(whole[:-lost])
    if lost <= 512:  # still in the padding
        assert len(list(tar_members(path))) == 2
    else:
        with pytest.raises(XciteError, match=r"cut short|truncated"):
            list(tar_members(path))


def test_damage_behind_the_first_member_is_not_the_end(tmp_path):
    whole = bytearray(archive_of(["a/1", "a/2", "a/3"]))
    whole[1024 + 5] ^= 1
    path = tmp_path / "t.tar"
    path.write_bytes(whole)
    with pytest.raises(XciteError, match="uncompressed tar"):
        list(tar_members(path))


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"PK\3\4" * 300])
def test_what_is_no_tar(tmp_path, content):
    path = tmp_path / "t.tar"
    path.write_bytes(content)
    with pytest.raises(XciteError, match=r"t\.tar"):
        list(tar_members(path))


def test_a_fifo_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "t.tar")
    with pytest.raises(XciteError, match="a FIFO, not a file"):
        list(tar_members(tmp_path / "t.tar"))
