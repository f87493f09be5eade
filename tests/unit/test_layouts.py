"""Folders as they lie on a stranger's disk: parts, links, strays, and archives of many kinds."""

import gzip
import io
import json
import os
import shutil
import tarfile
import zipfile

import pytest
from archives import tar
from PIL import Image

from xcite.data.decoding import decode
from xcite.data.findings import describe
from xcite.data.sources import has_split, open_source
from xcite.errors import XciteError


def png(value=0):
    file = io.BytesIO()
    Image.new("RGB", (6, 5), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def put(path, data=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png() if data is None else data)


@pytest.fixture
def pictures(tmp_path):
    for name in ("cat", "dog"):
        for number in range(2):
            put(tmp_path / "pictures" / name / f"{number}.png", png(number))
    return tmp_path / "pictures"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def names(source):
    return [os.path.relpath(source.name(index), source._root) for index in range(len(source))]


def test_numbers_sort_as_numbers_and_text_as_text(tmp_path):
    for number in range(12):
        put(tmp_path / "numbers" / str(number) / "0.png")
        put(tmp_path / "text" / f"c{number}" / "0.png")
    source = open_source(tmp_path / "numbers")
    assert source.class_names == [str(number) for number in range(12)]
    assert source.labels.tolist() == list(range(12))
    assert open_source(tmp_path / "text").class_names[:3] == ["c0", "c1", "c10"]
    tar(tmp_path / "t.tar", [(f"{number}/0.png", png()) for number in range(12)])
    assert open_source(tmp_path / "t.tar").class_names == source.class_names
    for number in ("-1", "2.5", "10", "+3"):
        put(tmp_path / "signed" / number / "0.png")
    assert open_source(tmp_path / "signed").class_names == ["-1", "2.5", "+3", "10"]


def test_folders_around_the_data_are_looked_through(pictures, tmp_path):
    outer = tmp_path / "outer" / "archive"
    outer.mkdir(parents=True)
    pictures.rename(outer / "v1")
    source = open_source(tmp_path / "outer")
    assert source.class_names == ["cat", "dog"]
    assert source.notes == [f"{tmp_path / 'outer'}: the pictures are those in {outer / 'v1'}"]
    shutil.copytree(outer / "v1", outer / "data" / "train")
    (outer / "v1").rename(outer / "data" / "val")
    assert has_split(tmp_path / "outer", "validation")
    assert len(open_source(tmp_path / "outer", split="validation")) == 4
    # a class stays a class, wherever in it the pictures lie, and so does a lone training part
    put(tmp_path / "one" / "cat" / "sub" / "0.png")
    assert open_source(tmp_path / "one").class_names == ["cat"]
    shutil.rmtree(outer / "data" / "val")
    with pytest.raises(XciteError, match="has a part 'train', but none called val"):
        open_source(tmp_path / "outer", split="validation")


def test_folders_beside_the_parts_are_named(pictures, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    shutil.copytree(pictures, root / "val")
    pictures.rename(root / "train")
    put(root / "test" / "1.png")
    tar(root / "imagenet.tar", [("cat/1.png", png(1))])
    assert open_source(root).found.left_out == {"other folders": 1, "archives": 1}
    assert open_source(root, split="validation").found.left_out == {}


def test_what_is_no_set_of_labelled_pictures_says_what_to_do(tmp_path):
    put(tmp_path / "loose" / "0.png")
    with pytest.raises(XciteError, match=r"nothing says what its 1 pictures show; .*xcite predict"):
        open_source(tmp_path / "loose")
    with pytest.raises(XciteError, match=r"a single picture; .*xcite predict"):
        open_source(tmp_path / "loose" / "0.png")


def test_strays_are_left_out_and_counted(pictures):
    for place in ("__MACOSX/cat/._0.png", "$RECYCLE.BIN/x.png", "cat/@eaDir/0.png"):
        put(pictures / place)
    for place in (".git/x.png", "cat/.ipynb_checkpoints/0.png", "cat/.hidden.png"):
        put(pictures / place)
    for place in ("cat/Thumbs.db", "cat/a.psd", "cat/b.PSD", "dog/notes.txt", "dog/README"):
        put(pictures / place)
    source = open_source(pictures)
    assert names(source) == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]
    assert source.found.left_out == {
        "system folders": 4,
        "hidden folders": 1,
        "hidden files": 1,
        "system files": 1,
        ".psd files": 2,
        ".txt files": 1,
        "files without an extension": 1,
    }
    assert not source.found.warnings
    assert "2 .psd files (cat/" in describe(source)[1]


def test_loose_pictures_and_empty_classes_are_warned_of(pictures):
    put(pictures / "loose.png")
    (pictures / "emu").mkdir()
    source = open_source(pictures)
    assert source.class_names == ["cat", "dog"]
    assert source.found.warnings == [
        "1 pictures lie in no class folder and were left out",
        "no pictures in the class folders 'emu': left out",
    ]
    # a class that a model knows may be without pictures here
    source = open_source(pictures, classes=["cat", "dog", "emu"])
    assert len(source.found.warnings) == 1


def test_links_are_followed_but_not_in_circles(pictures, tmp_path):
    put(tmp_path / "elsewhere" / "9.png", png(9))
    (pictures / "emu").symlink_to(tmp_path / "elsewhere")
    (pictures / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (pictures / "cat" / "again").symlink_to(tmp_path / "elsewhere")
    (pictures / "cat" / "up").symlink_to(pictures)
    (pictures / "cat" / "self").symlink_to(".")
    (pictures / "all").symlink_to(pictures)
    (pictures / "dog" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    (pictures / "dog" / "linked.png").symlink_to(tmp_path / "elsewhere" / "9.png")
    source = open_source(pictures)
    assert names(source) == [
        *("cat/0.png", "cat/1.png", "cat/again/9.png"),
        *("dog/0.png", "dog/1.png", "dog/linked.png", "emu/9.png"),
    ]
    assert source.found.left_out == {
        "links that lead in a circle": 1,
        "linked folders that are listed already": 3,
        "links that lead nowhere": 1,
    }
    (pictures / "dog" / "itself").symlink_to("itself")  # of which nothing can be asked
    (pictures / "itself").symlink_to("itself")
    assert len(open_source(pictures)) == 7
    (pictures / "twin").symlink_to(pictures / "dog")
    assert open_source(pictures).found.warnings == [
        "the class folders 'dog' and 'twin' are the same folder"
    ]


def test_tars_beside_class_folders_are_named(pictures):
    tar(pictures / "stray.tar", [("emu/0.png", png())])
    source = open_source(pictures)
    assert source.class_names == ["cat", "dog"]
    assert source.found.left_out == {".tar files": 1}
    assert "1 archives (stray.tar, ...) were not read" in source.found.warnings[0]


@pytest.mark.parametrize("validation", ["val", "valid", "Validation", "dev", "test"])
def test_parts_are_found_under_their_usual_names(pictures, tmp_path, validation):
    root = tmp_path / "root"
    root.mkdir()
    pictures.rename(root / "train")
    put(root / validation / "cat" / "7.png", png(7))
    put(root / "__MACOSX" / "x")
    assert len(open_source(root)) == 4
    source = open_source(root, split="validation")
    assert [decode(source.read(index))[0, 0, 0] for index in range(len(source))] == [7]
    assert has_split(root, "validation")


def test_a_test_folder_without_labels_is_no_validation(pictures, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    pictures.rename(root / "train")
    put(root / "test" / "1.png")
    assert open_source(root).class_names == ["cat", "dog"]
    assert not has_split(root, "validation")


def test_classes_called_as_parts_are_warned_of(tmp_path):
    for name in ("train", "val", "tram"):
        put(tmp_path / name / "0.png")
    lines = describe(open_source(tmp_path))
    assert lines[1:] == [
        "warning: classes are called train and val: are these parts of a data set?"
    ]


def test_parts_in_one_archive(tmp_path):
    members = [(f"x/{part}/{name}/{part}.png", png()) for part in ("Train", "val") for name in "ab"]
    tar(tmp_path / "t.tar", members)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    for file in ("t.tar", "z.zip"):
        source = open_source(tmp_path / file)
        assert source.class_names == ["a", "b"]
        assert ["Train.png" in source.name(index) for index in range(len(source))] == [True, True]
        assert has_split(tmp_path / file, "validation")
        assert len(open_source(tmp_path / file, split="validation")) == 2
    tar(tmp_path / "plain.tar", [("a/0.png", png()), ("b/0.png", png())])
    assert not has_split(tmp_path / "plain.tar", "validation")


def test_a_zip_reads_as_the_folder_it_was(pictures, tmp_path):
    put(pictures / "cat" / "deep" / "2.png", png(2))
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(pictures.rglob("*"), reverse=True):
            archive.write(path, path.relative_to(tmp_path))
    zipped, plain = open_source(tmp_path / "z.zip"), open_source(pictures)
    assert zipped.class_names == plain.class_names
    assert zipped.labels.tolist() == plain.labels.tolist()
    assert [zipped.read(i) for i in range(5)] == [plain.read(i) for i in range(5)]
    assert open_source(tmp_path / "z.zip").fingerprint() == zipped.fingerprint()


def test_hard_linked_members_are_read(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").write_bytes(png(3))
    (tmp_path / "cat" / "1.png").hardlink_to(tmp_path / "cat" / "0.png")
    (tmp_path / "cat" / ("l" * 120 + ".png")).hardlink_to(tmp_path / "cat" / "0.png")
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "t.tar", "w", format=form) as archive:
            archive.add(tmp_path / "cat", "cat")
            lost = tarfile.TarInfo("cat/lost.png")
            lost.type, lost.linkname = tarfile.LNKTYPE, "cat/nothing.png"
            archive.addfile(lost)
        source = open_source(tmp_path / "t.tar")
        assert [decode(source.read(index))[0, 0, 0] for index in range(len(source))] == [3, 3, 3]
        assert source.found.left_out == {"links to nothing in the archive": 1}


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_compressed_tars_are_unpacked_once(tmp_path, mode):
    path = tmp_path / f"t.tar.{mode}"
    tar(path, [("cat/0.png", png(1)), ("dog/0.png", png(2))], f"w:{mode}")
    source = open_source(path)
    assert decode(source.read(1))[0, 0, 0] == 2
    assert source.name(0) == f"{path}:cat/0.png"
    (unpacked,) = (tmp_path / "cache" / "xcite" / "unpacked").iterdir()
    before = unpacked.stat().st_mtime_ns
    open_source(path)
    assert unpacked.stat().st_mtime_ns == before
    os.utime(path, ns=(1, 1))  # another archive, as far as can be told
    open_source(path)
    (again,) = (tmp_path / "cache" / "xcite" / "unpacked").iterdir()
    assert again != unpacked
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(XciteError, match=r"t\.tar.*(cut short|cannot be read)"):
        open_source(path)
    (tmp_path / "other.tgz").write_bytes(b"nothing at all")
    with pytest.raises(XciteError, match="in a compression that is not read here; unpack it"):
        open_source(tmp_path / "other.tgz")


def test_compressed_bombs_end_early(tmp_path, monkeypatch):
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(80):
            file.write(bytes(1 << 20))
    with pytest.raises(XciteError, match="unpacks to more than 64 MiB"):
        open_source(path)
    assert not list((tmp_path / "cache").rglob("*.tar"))
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_webdataset_shards_by_range(tmp_path):
    for shard in range(9, 12):
        label = b"7" if shard % 2 else b"9"
        tar(tmp_path / f"s-{shard:04}.tar", [("1.png", png(shard)), ("1.cls", label)])
    source = open_source(f"{tmp_path}/s-{{0009..0011}}.tar")
    assert source.class_names == ["7", "9"]
    assert [int(decode(source.read(index))[0, 0, 0]) for index in range(3)] == [9, 11, 10]
    assert "the labels 7 to 9 are 2 different ones" in source.notes[0]
    with pytest.raises(XciteError, match=r"1 of 4 are missing, .*s-0012\.tar first"):
        open_source(f"{tmp_path}/s-{{0009..0012}}.tar")
    with pytest.raises(XciteError, match="beyond all measure"):
        open_source(f"{tmp_path}/s-{{0..999999999}}.tar")
    assert len(open_source(f"{tmp_path}/{{s-0009,s-0010}}.tar")) == 2


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.png", png()), ("1.cls", b"0"), ("2.png", png())], "'2.png' has no .cls or .json"),
        ([("1.png", png()), ("1.cls", b"\xff")], r"1\.cls: no label in it"),
        ([("1.png", png()), ("1.cls", b"x" * 2000)], "2000 bytes are no label"),
        ([("1.png", png()), ("1.cls", b"9" * 10)], "beyond all measure"),
        ([("1.png", png()), ("1.json", b'{"width": 3}')], "a JSON needs one of label, cls"),
        ([("1.png", png()), ("1.json", b"[" * 100_000)], r"1\.json: no label"),
        ([("1.png", png()), ("1.json", b'{"label": "\\ud800"}')], r"1\.json: no label"),
        ([("1.png", png())], "lies in no class folder"),
    ],
)
def test_samples_without_a_label_are_named(tmp_path, members, message):
    tar(tmp_path / "0.tar", members)
    with pytest.raises(XciteError, match=message):
        open_source(tmp_path / "0.tar")


def test_flat_shards_that_are_counted_are_no_classes(tmp_path):
    for number in range(2):
        tar(tmp_path / f"shard-{number}.tar", [("0.png", png())])
        tar(tmp_path / "named" / f"{'ab'[number]}.tar", [("0.png", png(number))])
    with pytest.raises(XciteError, match="lies in no class folder"):
        open_source(tmp_path / "shard-*.tar")
    assert open_source(tmp_path / "named").class_names == ["a", "b"]


def test_paddles_folder_with_lists_beside_one_folder_of_pictures(tmp_path):
    for number in range(4):
        put(tmp_path / "jpg" / f"{number}.png", png(number))
    (tmp_path / "train_list.txt").write_text("jpg/0.png 0\njpg/1.png 1\n")
    (tmp_path / "train_extra_list.txt").write_text("jpg/2.png 0\n")
    (tmp_path / "val_list.txt").write_text("jpg/3.png 1\n")
    assert len(open_source(tmp_path)) == 2
    source = open_source(tmp_path, split="validation", classes=["0", "1"])
    assert decode(source.read(0))[0, 0, 0] == 3


@pytest.mark.parametrize("ending", [".png", ".JPEG", ".JPG"])
def test_a_kaggle_table_of_ids(tmp_path, ending):
    for number in range(2):
        put(tmp_path / "train" / f"0{number}af{ending}", png(number))
    (tmp_path / "labels.csv").write_text("id,breed\n00af,boxer\n01af,beagle\n")
    source = open_source(tmp_path / "labels.csv")
    assert source.class_names == ["beagle", "boxer"]
    assert decode(source.read(1))[0, 0, 0] == 1


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_hugging_faces_metadata_beside_loose_pictures(tmp_path, form):
    rows = [(f"{number}.png", name) for number, name in enumerate(("cat", "dog", "cat"))]
    table = "file_name,label\n" + "".join(f"{file},{name}\n" for file, name in rows)
    if form == "jsonl":
        table = "".join(json.dumps({"file_name": f, "label": n}) + "\n" for f, n in rows)
    for part in ("train", "validation"):
        for number in range(3):
            put(tmp_path / part / f"{number}.png", png(number))
        (tmp_path / part / f"metadata.{form}").write_text(table)
    for split in ("train", "validation"):
        source = open_source(tmp_path, split=split)
        assert source.class_names == ["cat", "dog"]
        assert source.labels.tolist() == [0, 1, 0]
        assert f"/{split}/" in source.name(0)
    assert len(open_source(tmp_path / "train")) == 3
    (tmp_path / "train" / "labels.csv").write_text("file_name,label\n0.png,a\n1.png,b\n")
    assert open_source(tmp_path / "train").class_names == ["a", "b"]


def test_a_kaggle_folder_with_an_unlabelled_test_part(tmp_path):
    for part in ("train", "test"):
        for number in range(3):
            put(tmp_path / part / f"{number}af.png", png(number))
    (tmp_path / "train.csv").write_text("id,breed\n0af,boxer\n1af,beagle\n2af,boxer\n")
    (tmp_path / "test.csv").write_text("id\n0af\n")
    (tmp_path / "sample_submission.csv").write_text("id,breed\n0af,boxer\n")
    source = open_source(tmp_path)
    assert source.class_names == ["beagle", "boxer"]
    assert "/train/" in source.name(0)
    assert not has_split(tmp_path, "validation")


def test_a_file_of_class_names_beside_one_class_is_no_list(pictures):
    shutil.rmtree(pictures / "dog")
    (pictures / "labels.txt").write_text("cat\ndog\n")
    assert open_source(pictures, classes=["cat", "dog"]).labels.tolist() == [0, 0]


def test_what_several_files_must_be(tmp_path, pictures):
    with pytest.raises(XciteError, match="several files must all be tars, zips or parquet"):
        open_source(f"{pictures}/cat/*.png")


def test_parquet_that_cannot_be_read_says_why(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "train.parquet"

    def refused(table, message):
        pq.write_table(table, path)
        with pytest.raises(XciteError, match=message):
            open_source(path).read(0)

    images = [{"bytes": png(), "path": None}]
    refused(pa.table({"image": images, "label": [-1]}), "a label is -1; is this a part without")
    refused(pa.table({"image": images, "label": [None]}), "a label is None")
    refused(pa.table({"x": images, "label": [0]}), r"among x, label; .*data\.columns")
    refused(pa.table({"image": ["text"], "label": [0]}), "holds no encoded pictures but string")
    refused(pa.table({"image": [{"bytes": None, "path": "x"}], "label": [0]}), "no picture in this")
    no_text = pa.array([b"caf\xe9"]).cast(pa.string(), safe=False)
    refused(pa.table({"image": images, "label": no_text}), "damaged, or no parquet file .*utf-8")
    pq.write_table(pa.table({"x": images, "y": [3]}), path)
    assert open_source(path, columns="x,y").class_names == ["3"]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(XciteError, match=r"train\.parquet: damaged, or no parquet"):
        open_source(path)


def test_json_beside_shards_names_the_classes(tmp_path):
    tar(tmp_path / "0.tar", [("1.png", png()), ("1.cls", b"1"), ("2.png", png()), ("2.cls", b"0")])
    for file, said in (
        ("classes.json", {"cat": 0, "dog": 1}),
        ("_info.json", {"class_names": ["cat", "dog"]}),
        ("dataset_info.json", {"features": {"label": {"names": ["cat", "dog"]}}}),
    ):
        (tmp_path / file).write_text(json.dumps(said))
        assert open_source(tmp_path / "0.tar").class_names == ["cat", "dog"]
        (tmp_path / file).unlink()
    (tmp_path / "classes.txt").write_text("0 cat\n1 dog\n")
    assert open_source(tmp_path / "0.tar").class_names == ["cat", "dog"]


def test_a_table_beside_folders_that_may_be_no_classes_is_named(tmp_path):
    """HAM10000 is such a set: folders are parts of it, a table says what the pictures show."""
    for part in ("part_1", "part_2"):
        put(tmp_path / part / "1.png")
        put(tmp_path / part / "2.png")
    (tmp_path / "skin.csv").write_text("image_id,dx\n1,nv\n")
    source = open_source(tmp_path)
    assert source.class_names == ["part_1", "part_2"]
    (said,) = source.found.warnings
    assert said.endswith(
        "skin.csv was not read, the classes are the names of the folders; give the table "
        "itself if it says what the pictures show"
    )
