"""`xcite prepare imagenet` on miniature archives of the official structure."""

import io
import tarfile

import numpy as np
import pytest
from archives import add, tar_bytes
from PIL import Image

from xcite.cli import main
from xcite.data import prepare as module
from xcite.data.decoding import decode
from xcite.data.prepare import prepare_imagenet
from xcite.data.sources import open_source
from xcite.errors import XciteError

WNIDS = ["n01440764", "n01443537", "n02102040"]
NUMBERS = {"n01440764": 2, "n01443537": 3, "n02102040": 1}  # the devkit's own numbering


def jpeg(value):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(file, "JPEG")
    return file.getvalue()


def train_pictures(wnid):
    label = WNIDS.index(wnid)
    return [(f"{wnid}_{number}.JPEG", jpeg(60 * label + number)) for number in range(4)]


VALIDATION = [("n02102040", 121), ("n01440764", 1), ("n01443537", 61), ("n01440764", 2)]


@pytest.fixture
def archives(tmp_path):
    from scipy.io import savemat

    members = [(f"{wnid}.tar", tar_bytes(train_pictures(wnid))) for wnid in WNIDS]
    (tmp_path / "train.tar").write_bytes(tar_bytes(members))
    flat = [
        (f"ILSVRC2012_val_{number:08}.JPEG", jpeg(value))
        for number, (_, value) in enumerate(VALIDATION, 1)
    ]
    (tmp_path / "val.tar").write_bytes(tar_bytes(flat[::-1]))
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)]
    rows = [(number, wnid, 0) for wnid, number in NUMBERS.items()] + [(4, "n00001740", 3)]
    table = io.BytesIO()
    savemat(table, {"synsets": np.array(rows, fields).reshape(-1, 1)})
    truth = "".join(f"{NUMBERS[wnid]}\n" for wnid, _ in VALIDATION)
    with tarfile.open(tmp_path / "devkit.tar.gz", "w:gz") as archive:
        data = "ILSVRC2012_devkit_t12/data/"
        add(archive, data + "meta.mat", table.getvalue())
        add(archive, data + "ILSVRC2012_validation_ground_truth.txt", truth.encode())
    return tmp_path


def official(folder):
    return {
        "train": [folder / "train.tar"],
        "val": [folder / "val.tar"],
        "devkit": folder / "devkit.tar.gz",
    }


def check(train, val):
    assert train.class_names == val.class_names == WNIDS
    assert len(train) == 12
    assert len(val) == 4
    for source in (train, val):
        for index in range(len(source)):
            value = int(decode(source.read(index)).mean())
            assert round(value / 60) == source.labels[index]


def test_folders_from_the_command_line(archives, capsys):
    arguments = ["--train", "train.tar", "--val", "val.tar", "--devkit", "devkit.tar.gz"]
    paths = [str(archives / word) if "." in word else word for word in arguments]
    with pytest.raises(SystemExit) as ended:
        main(["prepare", "imagenet", *paths, str(archives / "imagenet")])
    assert ended.value.code == 0
    said = capsys.readouterr().out.splitlines()
    assert (
        said[0]
        == "training: 12 pictures of 3 classes, 4 each, sides of 8 pixels in those looked at"
    )
    assert said[1].startswith(
        "validation: 4 pictures of 3 classes, from 1 (n01443537) to 2 (n01440764)"
    )
    assert "12 train and 4 val pictures of 3 classes" in said[2]
    check(open_source(archives / "imagenet/train"), open_source(archives / "imagenet/val"))
    assert not (archives / "imagenet.part").exists()


def test_what_is_left_out_of_the_archives_is_said_before_anything_is_written(archives):
    strays = [("__MACOSX/n01440764/._1.JPEG", b"fork"), ("README.txt", b"read me")]
    members = [(f"{wnid}.tar", tar_bytes([*train_pictures(wnid), strays[1]])) for wnid in WNIDS]
    (archives / "train.tar").write_bytes(tar_bytes([*members, *strays]))
    said = {}

    def announce(split, lines):
        assert not (archives / "imagenet.part").exists()
        said[split] = lines

    prepare_imagenet(archives / "imagenet", announce=announce, **official(archives))
    assert said["train"][1] == (
        "left out: 4 .txt files (n01440764.tar/README.txt), "
        "1 system folders (__MACOSX/n01440764/._1.JPEG)"
    )
    assert len(said["val"]) == 1


def test_shards(archives):
    destination = archives / "out/imagenet"
    counts = prepare_imagenet(destination, layout="shards", per_shard=5, **official(archives))
    assert counts == {"classes": 3, "train": 12, "val": 4}
    shards = sorted(path.name for path in destination.glob("*.tar"))
    assert shards == ["train-0000.tar", "train-0001.tar", "train-0002.tar", "val-0000.tar"]
    check(open_source(f"{destination}/train-*.tar"), open_source(f"{destination}/val-*.tar"))


def test_sorted_light_parts(archives):
    for part in (0, 1):
        members = [
            (f"train/{wnid}/{name}", data)
            for wnid in WNIDS
            for name, data in train_pictures(wnid)[part::2]
        ]
        (archives / f"light-{part}.tar").write_bytes(tar_bytes(members))
    lines = [
        f"val/ILSVRC2012_val_{number:08}.JPEG {wnid}\n"
        for number, (wnid, _) in enumerate(VALIDATION, 1)
    ]
    (archives / "val.txt").write_text("".join(lines))
    prepare_imagenet(
        archives / "light",
        train=[archives / "light-0.tar", archives / "light-1.tar"],
        val=[archives / "val.tar"],
        val_list=archives / "val.txt",
    )
    check(open_source(archives / "light/train"), open_source(archives / "light/val"))


def test_kaggles_table_says_what_validation_pictures_show(archives):
    rows = [
        f"ILSVRC2012_val_{number:08},{wnid} 1 2 3 4 {wnid} 5 6 7 8\n"
        for number, (wnid, _) in enumerate(VALIDATION, 1)
    ]
    table = archives / "LOC_val_solution.csv"
    table.write_text("".join(["ImageId,PredictionString\n", *rows]))
    options = {"train": [archives / "train.tar"], "val": [archives / "val.tar"]}
    prepare_imagenet(archives / "kaggle", val_list=table, **options)
    check(open_source(archives / "kaggle/train"), open_source(archives / "kaggle/val"))
    table.write_text("ImageId,PredictionString\nILSVRC2012_val_00000001,n01440764 1 2\n")
    with pytest.raises(XciteError, match="line 2: expected 'name wnid'"):
        prepare_imagenet(archives / "other", val_list=table, **options)


@pytest.mark.parametrize("layout", ["folders", "shards"])
def test_an_interrupted_run_goes_on(archives, layout, monkeypatch):
    destination = archives / "imagenet"
    options = official(archives) | {"layout": layout, "per_shard": 3}

    def stop(what, done, total):
        if what == "writing train" and done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_imagenet(destination, progress=stop, **options)
    assert not destination.exists()
    read = []
    original = module._read
    monkeypatch.setattr(module, "_read", lambda p: read.append(p.file) or original(p))
    prepare_imagenet(destination, **options)
    written_again = 16 - len(read)
    assert written_again == (7 if layout == "folders" else 6)
    ending = "" if layout == "folders" else "-*.tar"
    check(open_source(f"{destination}/train{ending}"), open_source(f"{destination}/val{ending}"))
    assert prepare_imagenet(destination, **options)["train"] == 12  # done already: nothing to do


def test_a_part_begun_otherwise_is_not_continued(archives):
    (archives / "imagenet.part").mkdir()
    with pytest.raises(XciteError, match="begun from other archives"):
        prepare_imagenet(archives / "imagenet", **official(archives))
    (archives / "taken").mkdir()
    with pytest.raises(XciteError, match="exists already"):
        prepare_imagenet(archives / "taken", **official(archives))


@pytest.mark.parametrize(
    "name", ["../n01440764/x.JPEG", "/n01440764/x.JPEG", "n0144/../../x.JPEG", "a b/$(x).JPEG"]
)
def test_hostile_names_are_refused(archives, name):
    (archives / "train.tar").write_bytes(tar_bytes([(name, jpeg(1))]))
    with pytest.raises(XciteError, match="refused"):
        prepare_imagenet(archives / "imagenet", **official(archives))
    inner = tar_bytes([(name, jpeg(1))])
    (archives / "train.tar").write_bytes(tar_bytes([("n01440764.tar", inner)]))
    with pytest.raises(XciteError, match="refused"):
        prepare_imagenet(archives / "imagenet", **official(archives))
    assert not (archives / "imagenet").exists()
    assert not (archives / "imagenet.part").exists()


def test_incomplete_archives_are_refused(archives):
    whole = (archives / "train.tar").read_bytes()
    (archives / "train.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(XciteError, match=r"train\.tar"):
        prepare_imagenet(archives / "imagenet", **official(archives))
    members = [(f"{wnid}.tar", tar_bytes(train_pictures(wnid))) for wnid in WNIDS[:2]]
    (archives / "train.tar").write_bytes(tar_bytes(members))
    with pytest.raises(XciteError, match="val has pictures of n02102040"):
        prepare_imagenet(archives / "imagenet", **official(archives))
    (archives / "train.tar").write_bytes(whole)
    (archives / "val.tar").write_bytes(tar_bytes([("ILSVRC2012_val_00000001.JPEG", jpeg(121))]))
    with pytest.raises(XciteError, match="3 of 4 val pictures are missing"):
        prepare_imagenet(archives / "imagenet", **official(archives))
    (archives / "devkit.tar.gz").write_bytes(b"nothing")
    with pytest.raises(XciteError, match="development kit"):
        prepare_imagenet(archives / "imagenet", **official(archives))
    assert not (archives / "imagenet").exists()


def test_pictures_twice_are_refused(archives):
    with pytest.raises(XciteError, match="occurs 2 times"):
        prepare_imagenet(
            archives / "imagenet", **official(archives) | {"train": [archives / "train.tar"] * 2}
        )
