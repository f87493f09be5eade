"""Lists and class files as people write them; what could mean two things is refused."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from xcite.data.decoding import decode
from xcite.data.findings import describe, refuse_doubtful
from xcite.data.sources import has_split, open_source, read_class_names
from xcite.errors import XciteError

CLASSES = ["cat", "dog", "emu"]


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (6, 5), (value, value, value)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def root(tmp_path):
    """cat/0.png to emu/1.png, of the values 0, 1, 10, 11, 20, 21."""
    for label, name in enumerate(CLASSES):
        (tmp_path / name).mkdir()
        for number in range(2):
            (tmp_path / name / f"{number}.png").write_bytes(png(10 * label + number))
    return tmp_path


def paths(separator="/"):
    return [f"{name}{separator}{number}.png" for name in CLASSES for number in range(2)]


def lines(labels, separator=" ", slash="/", end="\n"):
    rows = zip(paths(slash), np.repeat(labels, 2), strict=True)
    return "".join(f"{path}{separator}{label}{end}" for path, label in rows)


def objects(labels):
    rows = zip(paths(), np.repeat(labels, 2).tolist(), strict=True)
    return "".join(json.dumps({"file_name": path, "label": label}) + "\n" for path, label in rows)


def listed(root, data, name="list.txt", **options):
    (root / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return open_source(root / name, **options)


def check(source, names=("0", "1", "2")):
    assert source.class_names == list(names)
    assert source.labels.tolist() == [0, 0, 1, 1, 2, 2]
    values = [int(decode(source.read(index))[0, 0, 0]) for index in range(6)]
    assert values == [0, 1, 10, 11, 20, 21]


HEADER = "image,size,label\n"
ROWS = "".join(f"{path},3,{path[:3]}\n" for path in paths())


@pytest.mark.parametrize(
    ("data", "name", "classes"),
    [
        (b"\xef\xbb\xbf" + lines([0, 1, 2]).encode(), "list.txt", "012"),
        (lines([0, 1, 2]).encode("utf-16"), "list.txt", "012"),
        (lines([0, 1, 2]).encode("utf-16-be"), "list.txt", "012"),
        (lines([0, 1, 2], end="\r\n"), "list.txt", "012"),
        (lines([0, 1, 2], separator="\t"), "list.txt", "012"),
        (lines([0, 1, 2], separator="  "), "list.txt", "012"),
        (lines([0, 1, 2], slash="\\"), "list.txt", "012"),
        ("# of all\n\n" + lines([0, 1, 2]) + "#cat/0.png 7\n", "list.txt", "012"),
        ("path label\n" + lines([0, 1, 2]), "list.txt", "012"),
        (lines([0, 1, 2], separator=","), "list.txt", "012"),
        (lines([1, 2, 3]), "list.txt", "123"),
        (lines([0, 5, 11]), "list.txt", ["0", "5", "11"]),
        (lines(CLASSES), "list.txt", CLASSES),
        (lines(["a cat", "b", "c"]), "list.txt", ["a cat", "b", "c"]),
        (lines([2, 10, 11], separator=","), "list.csv", ["2", "10", "11"]),
        (lines(CLASSES, separator=","), "list.csv", CLASSES),
        (HEADER + ROWS, "list.csv", CLASSES),
        (HEADER + ROWS, "list.txt", CLASSES),
        ((HEADER + ROWS).replace(",", "\t"), "list.tsv", CLASSES),
        ((HEADER + ROWS).replace(",", ";"), "list.csv", CLASSES),
        ((HEADER + ROWS).replace("cat/0.png", '"cat/0.png"'), "list.csv", CLASSES),
        (b"\xef\xbb\xbf" + (HEADER + ROWS).encode(), "list.csv", CLASSES),
        (
            (HEADER + ROWS).replace("image", "File_Name").replace("label", " Species"),
            "x.csv",
            CLASSES,
        ),
        ((HEADER + ROWS).replace(".png", "").replace("image", "id"), "list.csv", CLASSES),
        ((HEADER + ROWS).replace("\n", "\r"), "list.csv", CLASSES),
        (lines(["0.0", "1.0", "10.0"], separator=","), "list.csv", ["0", "1", "10"]),
        ("".join(f"{3 * (n // 2)} {path}\n" for n, path in enumerate(paths())), "l.txt", "036"),
        (
            (HEADER + ROWS).replace("image", "Image Path").replace("label", "CLASS"),
            "l.csv",
            CLASSES,
        ),
        ((HEADER + ROWS).replace("image", "路径").replace("label", "类别"), "l.csv", CLASSES),
        (
            (HEADER + ROWS).replace("image", "图片").replace("label", "标签").encode("gbk"),
            "l.csv",
            CLASSES,
        ),
        (lines([0, 1, 2]).replace(".png", ""), "list.txt", "012"),
        (objects(CLASSES), "list.jsonl", CLASSES),
        (objects([0, 1, 2]), "list.txt", "012"),
        (objects(CLASSES).replace(" ", ""), "list.jsonl", CLASSES),
        ("#all\n" + lines([0, 1, 2]), "list.txt", "012"),
    ],
)
def test_lists_as_people_write_them(root, data, name, classes):
    check(listed(root, data, name), classes)


def test_columns_by_name(root):
    data = (HEADER + ROWS).replace("image", "where").replace("label", "what")
    check(listed(root, data, "list.csv", columns="where, what"), CLASSES)
    with pytest.raises(
        XciteError, match=r"which of its 3 columns .*where, size, what.*data\.columns"
    ):
        listed(root, data, "list.csv")
    with pytest.raises(XciteError, match="no column 'why' among"):
        listed(root, data, "list.csv", columns="where,why")
    with pytest.raises(XciteError, match="write it as image,label"):
        listed(root, data, "list.csv", columns="where")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("cat/0.png 0\ncat/1.png cat\n", "line 2: the label 'cat' beside '0' in line 1"),
        ("cat/0.png cat\ncat/1.png 1\n", "line 2: the label '1' beside 'cat'"),
        ("cat/0.png 0\ncat/1.png\n", "line 2: expected 'path label'"),
        ("", "no pictures listed"),
        ("# nothing\n", "no pictures listed"),
        (b"cat/0.png 0\n\xff\xff\x00", "zero bytes"),
        (b"cat/0.png 0\n\xff\xfe\xff 1\n", "line 2: neither UTF-8 nor GBK"),
        (b"\xff\xfec\x00\x00\xd8", "damaged utf-16"),
        (b"PK\3\4" + bytes(100), "not a text file but a workbook or a zip archive; save the"),
        (b"\x1f\x8b\x08" + bytes(100), "not a text file but a compressed one"),
        ('[{"image": "cat/0.png", "label": 0}]', "line 1: this looks like JSON, but"),
        ('{"image": "cat/0.png", "label": 0}\n7\n', "line 2: this looks like JSON, but"),
        ('{"image":' * 2000, "line 1: this looks like JSON, but"),
        ('{"image": "cat/0.png", "label": [0]}\n', "line 1: no label for 'cat/0.png'"),
        ('{"file": "cat/0.png", "text": "a"}\n', "which of its 2 columns .* data.columns"),
        ("1 cat/0.png\n2 cat/1.png\n3 dog/0.png\n", "only count the lines"),
        ("http://x.org/0.png 0\n", "these are addresses"),
        ("cat/0.png 0\ncat/1.png -1\n", "the label -1 is below 0"),
        ("cat/0.png -1\ncat/1.png 0\n", "the label -1 is below 0"),
    ],
)
def test_what_cannot_be_read_is_named(root, data, message):
    with pytest.raises(XciteError, match=message):
        listed(root, data)


def test_names_in_gbk(root):
    (root / "猫").mkdir()
    (root / "猫" / "0.png").write_bytes(png(7))
    source = listed(root, "猫/0.png 猫\ndog/0.png 狗\n".encode("gbk"))
    assert source.class_names == ["狗", "猫"]
    assert decode(source.read(0))[0, 0, 0] == 7
    assert "line 2 is not UTF-8; read as GBK" in source.notes[0]  # by chance line 1 is


def test_file_names_that_are_no_text_in_any_encoding(root):
    with open(os.fsencode(root) + b"/caf\xe9 x.png", "wb") as file:
        file.write(png(7))
    source = listed(root, b"caf\xe9 x.png 0\ncat/0.png 1\n")
    assert decode(source.read(0))[0, 0, 0] == 7
    assert source.notes == []


def test_a_name_that_begins_like_a_comment(root):
    (root / "# 1.png").write_bytes(png(9))
    source = listed(root, "# 1.png 0\n# other.png 1\n" + lines([0, 1, 2]))
    assert len(source) == 7
    assert decode(source.read(0))[0, 0, 0] == 9


def test_missing_files_are_found_before_any_is_read(root):
    source = listed(root, lines([0, 1, 2]) + "dog/9.png 1\nemu/9.png 2\n")
    assert source.missing == 2
    assert source.found.left_out == {"listed files that are missing": 2}
    assert "2 of 8 listed files are missing, the first in line 7" in describe(source)[-1]
    source = listed(root, "cat/8.png 0\n" + lines([0, 1, 2]))  # the first is as good as any other
    assert source.missing == 1
    with pytest.raises(XciteError, match=r"the first in line 1: .*8\.png.*data\.on_error=skip"):
        refuse_doubtful(source, None, on_error="stop", classes_given=False)
    with pytest.raises(XciteError, match=r"no file .*8\.png \(2 of 2 are missing\); set data.root"):
        listed(root, "cat/8.png 0\ncat/9.png 1\n")


def test_a_column_says_which_rows_are_for_training(root):
    rows = "".join(
        f"{path},{path[:3]},{('Train', 'test')[number % 2]}\n"
        for number, path in enumerate(paths())
    )
    source = listed(root, "image,label,split\n" + rows, "list.csv")
    assert [source.name(index)[-9:] for index in range(3)] == [f"{name}/0.png" for name in CLASSES]
    assert "of its rows, those of train are read" in source.notes
    held = open_source(root / "list.csv", split="validation", classes=source.class_names)
    assert [held.name(index)[-9:] for index in range(3)] == [f"{name}/1.png" for name in CLASSES]
    assert has_split(root / "list.csv", "validation")
    # a column of another meaning, or of one split alone, divides nothing
    assert len(listed(root, "image,label,set\n" + rows.replace("test", "b"), "a.csv")) == 6
    assert not has_split(root / "a.csv", "validation")


def test_many_listed_files_are_looked_for_by_listing_their_folder(root, monkeypatch):
    asked, exists = [], os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: asked.append(path) or exists(path))
    source = listed(root, "".join(f"cat/{number}.png 0\n" for number in range(20_000)))
    assert source.missing == 19_998
    assert len(asked) < 100


def test_repeated_lines_are_warned_of(root):
    source = listed(root, lines([0, 1, 2]) + "cat/0.png 0\ndog/0.png 2\n")
    assert len(source) == 8
    assert source.found.warnings == [
        "2 pictures are listed more than once, such as cat/0.png; "
        "dog/0.png even with different labels"
    ]


def test_numbers_are_names_where_the_classes_are_numbers(root):
    names = [str(number) for number in range(12)]
    source = listed(root, lines([2, 10, 11]), classes=names)
    assert [source.class_names[label] for label in source.labels[::2]] == ["2", "10", "11"]
    source = listed(root, lines([2, 10, 11]), classes=["10", "2", "11"])
    assert [source.class_names[label] for label in source.labels[::2]] == ["2", "10", "11"]
    assert not source.guessed
    with pytest.raises(XciteError, match="class '2' is not among the 2 expected ones"):
        listed(root, lines([2, 10, 11]), classes=["10", "11"])


def test_numbers_beside_named_classes(root):
    check(listed(root, lines([0, 1, 2]), classes=CLASSES), CLASSES)
    assert not listed(root, lines([0, 1, 2]), classes=CLASSES).guessed  # the folders say so, too
    source = listed(root, lines([1, 2, 3]), classes=CLASSES)
    check(source, CLASSES)
    assert source.notes == [f"{root / 'list.txt'}: labels count from 1; 1 is 'cat', 3 is 'emu'"]
    with pytest.raises(XciteError, match=r"in another order than cat.*'cat/0.png' is 'emu' by"):
        listed(root, lines([2, 0, 1]), classes=CLASSES)
    with pytest.raises(XciteError, match="label 4, but there are 3 classes"):
        listed(root, lines([1, 2, 4]), classes=CLASSES)


def test_numbers_of_the_development_kit_are_not_taken_for_those_of_sorted_ids(root):
    wnids = ["n01440764", "n02102040", "n15075141"]
    with pytest.raises(XciteError, match=r"labels 1 to 3 of ImageNet.*ILSVRC2012_ID"):
        listed(root, lines([3, 1, 2]), classes=wnids)
    words = [f"class {number}" for number in range(1000)]  # ImageNet's classes by their words
    with pytest.raises(XciteError, match=r"labels 1 to 1000 of ImageNet"):
        listed(root, lines([1, 500, 1000]), classes=words)
    assert listed(root, lines([2, 0, 1]), classes=wnids).labels.tolist() == [2, 2, 0, 0, 1, 1]


def test_the_root_is_looked_for_in_the_usual_folders(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    root.rename(other / "images")
    source = listed(other, lines([0, 1, 2]))
    check(source)
    assert source.notes == [f"listed paths start in {other / 'images'}"]


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ("0 cat\n1 dog\n2 big emu\n", ["cat", "dog", "big emu"]),
        ("2 emu\n0 cat\n1 dog\n", ["cat", "dog", "emu"]),
        ("1 cat\n2 dog\n", ["cat", "dog"]),
        ("0 crane\n1 dog\n2 crane\n", ["crane (0)", "dog", "crane (2)"]),
        ("0,cat\n1,dog\n", ["cat", "dog"]),
        ("2 horses\n3 horses\n", ["2 horses", "3 horses"]),
        ("n01440764 tench, Tinca\nn01443537 goldfish\n", ["n01440764", "n01443537"]),
        ("\ufeffcat\r\ndog\r\n", ["cat", "dog"]),
        ("猫\n狗\n".encode("gbk"), ["猫", "狗"]),
        ("猫\n狗\n".encode("utf-16"), ["猫", "狗"]),
        ("0\n1\n2\n", ["0", "1", "2"]),
    ],
)
def test_class_files_as_people_write_them(tmp_path, data, names):
    path = tmp_path / "classes.txt"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    assert read_class_names(path) == names


def test_what_is_doubtful_is_refused_before_training(root):
    train = open_source(root)
    rows = "".join(f"flat{number}.png {number}\n" for number in range(3))
    for number in range(3):
        (root / f"flat{number}.png").write_bytes(png(number))
    validation = listed(root, rows, classes=CLASSES)
    assert validation.guessed
    with pytest.raises(
        XciteError, match=r"named cat, dog, emu, ...: which is which\?.*data\.classes"
    ):
        refuse_doubtful(train, validation, on_error="stop", classes_given=False)
    refuse_doubtful(train, validation, on_error="stop", classes_given=True)
    refuse_doubtful(
        listed(root, lines([0, 1, 2])), validation, on_error="stop", classes_given=False
    )
    lost = listed(root, lines([0, 1, 2]) + "cat/7.png 0\n", classes=CLASSES)
    with pytest.raises(XciteError, match=r"1 of 7 listed files are missing.*line 7.*on_error=skip"):
        refuse_doubtful(lost, None, on_error="stop", classes_given=False)
    refuse_doubtful(lost, None, on_error="skip", classes_given=False)
