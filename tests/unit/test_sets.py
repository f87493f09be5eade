"""Sets with some of a model's classes, and every member of the ImageNet suite in miniature."""

import json
import tarfile
from pathlib import Path

import pytest
from painted_classes import eye, paint

from xcite.errors import XciteError
from xcite.evaluation.real_labels import read_real_labels
from xcite.evaluation.sets import Result, evaluate_set, open_set
from xcite.evaluation.suite import find_sets
from xcite.runtime.opening import OpenedModel
from xcite.weights.imagenet import imagenet_classes, imagenet_wnids

WNIDS = imagenet_wnids()


def evaluated(spec: Path, model: OpenedModel, **options: object) -> Result:
    found = open_set(str(spec), model, model="m", **options)  # type: ignore[arg-type]
    return evaluate_set(model, found, batch=3, workers=0)


def two_wnids(folder: Path) -> Path:
    """Class 10 seen as 11 and as 10, class 20 as 20."""
    paint(folder / WNIDS[10] / "a.jpg", 11)
    paint(folder / WNIDS[10] / "b.jpg", 10)
    paint(folder / WNIDS[20] / "c.jpg", 20)
    return folder


@pytest.mark.parametrize("names", [imagenet_classes(), WNIDS, None])
def test_wnid_folders_are_some_of_imagenet_s_classes(tmp_path: Path, names: list[str]) -> None:
    accuracy = evaluated(two_wnids(tmp_path), eye(names)).accuracy
    assert accuracy.top1 == pytest.approx(200 / 3)
    assert accuracy.top1_present == 100
    assert accuracy.totals.nonzero()[0].tolist() == [10, 20]
    assert len(accuracy.absent) == 998
    assert accuracy.as_json()["acc1_present"] == 100


def test_absent_classes_are_named_and_empty_folders_too(tmp_path: Path) -> None:
    model = eye(["cat", "dog", "emu"], 3)
    paint(tmp_path / "cat" / "a.png", 0)
    paint(tmp_path / "emu" / "b.png", 1)
    (tmp_path / "dog").mkdir()
    found = open_set(str(tmp_path), model, model="m")
    assert "note: no pictures of 1 classes: dog" in found.notes
    assert any(note.startswith("2 pictures of 2 classes") for note in found.notes)
    accuracy = evaluated(tmp_path, model).accuracy
    assert (accuracy.top1, accuracy.top1_present, accuracy.absent) == (50, 50, ["dog"])


def test_an_extra_class_is_refused_by_name_or_left_out(tmp_path: Path) -> None:
    model = eye(["cat", "emu"], 2)
    paint(tmp_path / "cat" / "a.png", 0)
    paint(tmp_path / "cow" / "b.png", 1)
    with pytest.raises(XciteError, match="m does not know cow; its classes: cat, emu"):
        open_set(str(tmp_path), model, model="m")
    accuracy = evaluated(tmp_path, model, ignore_extra=True).accuracy
    assert (accuracy.pictures, accuracy.top1, accuracy.absent) == (1, 100, ["emu"])


def test_v2_s_folders_are_numbers(tmp_path: Path) -> None:
    for number in range(1000):
        paint(tmp_path / "imagenetv2-matched-frequency-format-val" / str(number) / "a.jpeg", number)
    (known,) = find_sets(tmp_path)
    assert known.title == "ImageNet-V2 (matched frequency)"
    for names in (imagenet_classes(), WNIDS, None):
        accuracy = evaluated(known.path, eye(names)).accuracy
        assert (accuracy.pictures, accuracy.top1, accuracy.absent) == (1000, 100, [])


def validation(folder: Path, *, flat: bool = False) -> Path:
    """Four validation pictures of the classes 3, 4, 5 and 6 that look like 3, 5, 5 and 7."""
    for number, (label, shown) in enumerate([(3, 3), (4, 5), (5, 5), (6, 7)], 1):
        place = folder if flat else folder / WNIDS[label]
        paint(place / f"ILSVRC2012_val_{number:08}.JPEG", shown)
    return folder


def real_json(path: Path, rows: object) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("flat", [False, True])
def test_real_takes_any_right_class_and_leaves_out_pictures_without(
    tmp_path: Path, flat: bool
) -> None:
    folder = validation(tmp_path / "val", flat=flat)
    labels = real_json(tmp_path / "real.json", [[3], [4, 5], [], [6, 900]])
    for names in (imagenet_classes(), WNIDS, WNIDS[::-1], None):
        result = evaluated(folder, eye(names), real=str(labels))
        right = 2 if names != WNIDS[::-1] else 0  # whose logits mean other classes
        assert (result.accuracy.pictures, result.unlabelled) == (3, 1)
        assert result.accuracy.top1 == pytest.approx(100 * right / 3)
    assert evaluated(folder, eye(WNIDS), real=str(labels)).accuracy.top5 == 100
    if not flat:
        assert evaluated(folder, eye(WNIDS)).accuracy.top1 == 50


def test_real_needs_official_names_and_sound_labels(tmp_path: Path) -> None:
    folder = validation(tmp_path / "val")
    with pytest.raises(XciteError, match="has labels of ILSVRC2012_val_00000001 to ILSVRC2012_val"):
        open_set(str(folder), eye(WNIDS), real=str(real_json(tmp_path / "short.json", [[1], [2]])))
    empty = real_json(tmp_path / "empty.json", [[], [], [], []])
    with pytest.raises(XciteError, match="no label for any of the 4 pictures"):
        open_set(str(folder), eye(WNIDS), real=str(empty))
    labels = real_json(tmp_path / "real.json", [[1]] * 4)
    with pytest.raises(XciteError, match="does not know"):
        open_set(str(folder), eye(["cat", "emu"], 2), real=str(labels))
    paint(folder / WNIDS[3] / "mine.jpg", 3)
    with pytest.raises(XciteError, match=r"mine\.jpg: .*keep the pictures' official names"):
        open_set(str(folder), eye(WNIDS), real=str(labels))
    for wrong in ({"1": [2]}, [3], [["3"]], [[1000]], [[-1]], [[True]]):
        with pytest.raises(XciteError, match="expected a JSON list"):
            read_real_labels(real_json(tmp_path / "wrong.json", wrong))
    (tmp_path / "wrong.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(XciteError, match="expected a JSON list"):
        read_real_labels(tmp_path / "wrong.json")
    with pytest.raises(XciteError, match="no such file"):
        read_real_labels(tmp_path / "none.json")


def test_the_suite_is_recognised_and_training_parts_are_not(tmp_path: Path) -> None:
    for folder in (
        *("imagenet-a", "ImageNet-R/imagenet-r", "sketch", "imagenette2-160/val"),
        *("imagenette2-160/train", "imagenet100/val.X", "imagenet100/train.X1", "mine/wnids"),
    ):
        two_wnids(tmp_path / folder)
    validation(tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "val")
    two_wnids(tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "train")
    (tmp_path / "reassessed").mkdir()
    real_json(tmp_path / "reassessed" / "real.json", [[3], [4, 5], [], [6, 900]])
    paint(tmp_path / "photos" / "cats" / "a.png", 1)
    paint(tmp_path / "imagenet-a-and-more" / "nonsense" / "a.png", 1)
    with tarfile.open(tmp_path / "imagenet-a.tar", "w") as archive:  # unpacked beside it
        archive.add(tmp_path / "imagenet-a", "imagenet-a")
    with tarfile.open(tmp_path / "imagenetv2-top-images.tar", "w") as archive:
        archive.add(tmp_path / "imagenet-a", "imagenetv2-top-images-format-val")
    found = {
        str(known.path.relative_to(tmp_path)): (known.title, known.real)
        for known in find_sets(tmp_path)
        if known.real is None
    }
    assert found == {
        "ILSVRC/Data/CLS-LOC/val": ("ImageNet", None),
        "ImageNet-R/imagenet-r": ("ImageNet-R", None),
        "imagenet-a": ("ImageNet-A", None),
        "imagenet100/val.X": ("ImageNet-100", None),
        "imagenette2-160/val": ("Imagenette", None),
        "imagenetv2-top-images.tar": ("ImageNet-V2 (top images)", None),
        "mine/wnids": ("mine/wnids", None),
        "sketch": ("ImageNet-Sketch", None),
    }
    (reassessed,) = [known for known in find_sets(tmp_path) if known.real]
    assert reassessed.title == "ImageNet ReaL"
    assert reassessed.path == tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    for known in find_sets(tmp_path):
        real = str(known.real) if known.real else None
        result = evaluated(known.path, eye(imagenet_classes()), real=real)
        assert result.accuracy.top1 == pytest.approx({4: 50}.get(result.accuracy.pictures, 200 / 3))


def test_the_official_tar_is_imagenet_unless_its_pictures_lie_there(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pictures = validation(tmp_path / "flat", flat=True)
    with tarfile.open(tmp_path / "data" / "ILSVRC2012_img_val.tar", "w") as archive:
        for path in pictures.glob("*.JPEG"):
            archive.add(path, path.name)
    with tarfile.open(tmp_path / "data" / "imagenet-r.tar.xz", "w:xz") as archive:
        archive.add(two_wnids(tmp_path / "renditions"), "imagenet-r")
    titles = {known.path.name: known.title for known in find_sets(tmp_path / "data")}
    assert titles == {"ILSVRC2012_img_val.tar": "ImageNet", "imagenet-r.tar.xz": "ImageNet-R"}
    validation(tmp_path / "data" / "val")
    found = [known.path.name for known in find_sets(tmp_path / "data")]
    assert found == ["imagenet-r.tar.xz", "val"]


def test_a_single_set_is_a_suite_of_one(tmp_path: Path) -> None:
    (known,) = find_sets(two_wnids(tmp_path / "imagenet-sketch"))
    assert known.title == "ImageNet-Sketch"
    (known,) = find_sets(validation(tmp_path / "flat", flat=True))
    assert known.title == "ImageNet"
    paint(tmp_path / "photos" / "cats" / "a.png", 1)
    with pytest.raises(XciteError, match="no known set in it: class folders named by wnid"):
        find_sets(tmp_path / "photos")
    with pytest.raises(XciteError, match="no such folder"):
        find_sets(tmp_path / "nothing")
