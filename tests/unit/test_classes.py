"""Classes matched by name, and answers in order, as every command does it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xcite.errors import XciteError
from xcite.runtime.classes import match_classes, open_labelled, same_in_order
from xcite.runtime.ranking import probabilities, ranked, top_classes
from xcite.weights.imagenet import imagenet_classes, imagenet_wnids, in_imagenet_order


def test_classes_are_matched_by_name() -> None:
    columns, note = match_classes(["cat", "dog", "owl"], ["owl", "cat", "dog"], model="m")
    assert columns is not None
    assert columns.tolist() == [2, 0, 1]
    assert note == "the classes of m are in another order and were matched by name"
    assert match_classes(["cat", "dog"], ["cat", "dog"]) == (None, None)
    with pytest.raises(XciteError, match="m does not know cow; its classes: cat, dog; pets/val: c"):
        match_classes(["cat", "dog"], ["cat", "cow"], model="m", data="pets/val")


def test_a_model_may_know_more_classes() -> None:
    columns, note = match_classes(["cat", "dog", "owl"], ["owl", "cat"], data="pets")
    assert columns is not None
    assert columns.tolist() == [2, 0]
    assert note == "pets has 2 of the 3 classes of the model"


def test_a_model_without_names_takes_those_of_the_data() -> None:
    columns, note = match_classes(None, ["a", "b"], count=2, model="m", data="pets")
    assert columns is None
    assert note == "m names no classes: taken to be those of pets, in this order"
    with pytest.raises(XciteError, match="m names no classes and has 3, pets has 2"):
        match_classes(None, ["a", "b"], count=3, model="m", data="pets")


def test_the_wnids_of_imagenet_are_in_the_order_of_its_names() -> None:
    names, wnids = imagenet_classes(), imagenet_wnids()
    assert len(wnids) == len(set(wnids)) == 1000
    assert wnids == sorted(wnids)
    # From Keras' imagenet_class_index.json; the two maillots and cranes are the known traps.
    anchors = {
        "n01440764": "tench",
        "n02012849": "crane (bird)",
        "n03126707": "crane (machine)",
        "n02123045": "tabby",
        "n03710637": "maillot (tights)",
        "n03710721": "maillot (tank suit)",
        "n15075141": "toilet tissue",
    }
    assert {wnid: names[wnids.index(wnid)] for wnid in anchors} == anchors


def test_the_same_classes_under_other_names() -> None:
    names, folders = imagenet_classes(), imagenet_wnids()
    for known, wanted in ((names, folders), (folders, names)):
        assert same_in_order(known, wanted)
        columns, note = match_classes(known, wanted)
        assert columns is None
        assert note is not None
        assert "ImageNet's classes in order" in note
        assert not same_in_order(known, wanted[::-1])
        columns, _ = match_classes(known, wanted[::-1])
        assert columns is not None
        assert columns.tolist() == list(range(1000))[::-1]
    assert not same_in_order(names[::-1], folders)
    assert same_in_order(["cat", "dog"], ["0", "1"])
    assert not same_in_order(["cat", "dog"], ["1", "0"])
    assert not same_in_order(["cat", "dog"], ["0", "1", "2"])
    assert not same_in_order(["cat", "dog"], ["dog", "cat"])


def test_some_wnids_are_some_of_imagenet_s_classes() -> None:
    wanted = ["n01443537", "n15075141", "n01440764"]
    columns, note = match_classes(imagenet_classes(), wanted, model="m", data="d")
    assert columns is not None
    assert columns.tolist() == [1, 999, 0]
    assert note == "d gives 3 of the 1000 classes of m by their wnids"
    columns, note = match_classes(None, wanted, count=1000, model="m", data="d")
    assert columns is not None
    assert columns.tolist() == [1, 999, 0]
    assert note == "m names no classes: taken to be ImageNet's, which d gives by their wnids"
    with pytest.raises(XciteError, match="m does not know n99999999; its classes: tench"):
        match_classes(imagenet_classes(), [*wanted, "n99999999"], model="m")
    with pytest.raises(XciteError, match="m names no classes and has 900, d has 3"):
        match_classes(None, wanted, count=900, model="m", data="d")
    with pytest.raises(XciteError, match="does not know n01443537"):
        match_classes(["tench", "goldfish"], wanted)


def test_imagenet_s_names_as_others_write_them() -> None:
    names = imagenet_classes()
    others = [f"{name.replace(' ', '_')}, Latin name" for name in names]
    others[134] = others[517] = "crane"  # as in Keras' list, where only the first one stays
    for known in (names, imagenet_wnids()):
        columns, note = match_classes(known, others, data="d", model="m")
        assert columns is None
        assert note == "d has ImageNet's classes in order, as m"
        columns, _ = match_classes(known, ["goldfish, Carassius auratus", "Tench"])
        assert columns is not None
        assert columns.tolist() == [1, 0]
        with pytest.raises(XciteError, match="does not know crane; its classes"):
            match_classes(known, ["goldfish", "crane"])  # which of the two?
    assert not in_imagenet_order(names[::-1])
    assert not in_imagenet_order(names[:-1])


def test_numbers_are_taken_by_value_in_whatever_order_folders_come() -> None:
    names = imagenet_classes()
    wanted = sorted(str(number) for number in range(1000))  # 0, 1, 10, 100, 101, ...
    columns, _ = match_classes(names, wanted, numbered=True)
    assert columns is not None
    assert columns.tolist() == [int(name) for name in wanted]
    columns, note = match_classes(None, ["3", "0"], count=4, numbered=True, model="m", data="d")
    assert columns is not None
    assert columns.tolist() == [3, 0]
    assert note == "m names no classes: the numbers of d are taken for them"


def test_bare_numbers_are_places_only_where_that_is_asked_for() -> None:
    columns, note = match_classes(["cat", "dog"], ["0", "1"], numbered=True, model="m", data="d")
    assert columns is None
    assert note == (
        "0, 1 of d: taken to be the classes of m in their order: 0 is 'cat', 1 is 'dog'"
    )
    with pytest.raises(XciteError, match="m does not know 0, 1; its classes: cat, dog; d: 0, 1"):
        match_classes(["cat", "dog"], ["0", "1"], model="m", data="d")
    with pytest.raises(XciteError, match="does not know 0, 1, 2"):
        match_classes(["cat", "dog"], ["0", "1", "2"], numbered=True)


def test_numbers_that_are_names_are_matched_as_names() -> None:
    assert not same_in_order(["1", "0"], ["0", "1"])
    columns, _ = match_classes(["1", "0"], ["0", "1"])
    assert columns is not None
    assert columns.tolist() == [1, 0]


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for name in ("cat", "owl"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "pets" / name / "one.png")
    return tmp_path / "pets"


def test_labels_are_places_among_the_model_s_classes(pets: Path) -> None:
    found = open_labelled(str(pets), ["owl", "dog", "cat"], 3, channels=3)
    assert found.source.labels.tolist() == [2, 0]
    assert found.class_names == ["owl", "dog", "cat"]
    assert found.present.tolist() == [0, 2]
    assert found.listing.class_names == ["cat", "owl"]
    found = open_labelled(str(pets), None, 2, channels=3)
    assert (found.source.labels.tolist(), found.class_names) == ([0, 1], ["cat", "owl"])
    assert len(found.notes) == 1
    with pytest.raises(XciteError, match="does not know owl"):
        open_labelled(str(pets), ["cat", "dog"], 2, channels=3)


def test_pictures_of_extra_classes_are_left_out_only_where_that_is_asked_for(pets: Path) -> None:
    found = open_labelled(str(pets), ["owl", "dog"], 2, channels=3, model="m", ignore_extra=True)
    assert found.source.labels.tolist() == [0]
    assert Path(found.source.name(0)).parent.name == "owl"
    assert "1 pictures of classes that m does not know are left out: cat" in found.notes
    assert len(found.listing) == 2
    with pytest.raises(XciteError, match="m knows none of the classes cat, owl"):
        open_labelled(str(pets), ["emu", "dog"], 2, channels=3, model="m", ignore_extra=True)


def test_folders_with_numbers_for_names_are_places(pets: Path) -> None:
    for number, name in enumerate(("cat", "owl")):
        (pets / name).rename(pets / str(number))
    found = open_labelled(str(pets), ["dog", "emu"], 2, channels=3, model="m")
    assert (found.source.labels.tolist(), found.class_names) == ([0, 1], ["dog", "emu"])
    assert found.notes == [
        f"0, 1 of {pets}: taken to be the classes of m in their order: 0 is 'dog', 1 is 'emu'"
    ]
    # some may be missing, but not 0, or they may count from 1
    found = open_labelled(str(pets), ["dog", "emu", "yak"], 3, channels=3, model="m")
    assert (found.source.labels.tolist(), len(found.class_names)) == ([0, 1], 3)
    (pets / "0").rename(pets / "2")
    with pytest.raises(XciteError, match="m does not know 1, 2"):
        open_labelled(str(pets), ["dog", "emu", "yak"], 3, channels=3, model="m")


def test_the_numbers_of_a_list_file_are_places(pets: Path) -> None:
    (pets / "list.txt").write_text("owl/one.png 2\ncat/one.png 0\n", encoding="utf-8")
    for known in (["cat", "dog", "owl", "emu"], None):
        found = open_labelled(str(pets / "list.txt"), known, 4, channels=3)
        assert found.source.labels.tolist() == [2, 0]
        assert found.class_names == (known or ["0", "1", "2", "3"])
        assert found.notes == []


def test_probabilities_survive_large_logits() -> None:
    found = probabilities(np.array([[1e4, 1e4 - 1, -1e4]], np.float32))
    np.testing.assert_allclose(found, [[0.7310586, 0.2689414, 0]], atol=1e-6)
    assert probabilities(np.array([[1e4, 0.0]], np.float32)).tolist() == [[1, 0]]


def test_equal_answers_come_in_the_order_of_the_classes() -> None:
    shares = np.array([0.2, 0.3, 0.2, 0.3])
    assert top_classes(shares, 3).tolist() == [1, 3, 0]
    assert ranked(shares, ["a", "b"], 3) == [("b", 0.3), ("3", 0.3), ("a", 0.2)]
    assert ranked(shares, None, 9)[0] == ("1", 0.3)
