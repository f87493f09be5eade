"""Classes matched by name, and answers in order, as every command does it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xcite.errors import XciteError
from xcite.runtime.classes import match_classes, open_labelled, same_in_order
from xcite.runtime.ranking import probabilities, ranked, top_classes
from xcite.weights.identification import imagenet_classes


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


def test_the_same_classes_under_other_names() -> None:
    folders = [f"n{number:08}" for number in range(1000)]
    names = imagenet_classes()
    assert same_in_order(names, folders)
    columns, note = match_classes(names, folders)
    assert columns is None
    assert note is not None
    assert "in this order" in note
    assert not same_in_order(names, folders[::-1])
    with pytest.raises(XciteError, match="does not know n00000999"):
        match_classes(names, folders[::-1])
    assert not same_in_order(names[::-1], folders)
    assert same_in_order(["cat", "dog"], ["0", "1"])
    assert not same_in_order(["cat", "dog"], ["0", "1", "2"])
    assert not same_in_order(["cat", "dog"], ["dog", "cat"])


def test_bare_numbers_are_places_only_where_that_is_asked_for() -> None:
    columns, note = match_classes(["cat", "dog"], ["0", "1"], numbered=True, model="m", data="d")
    assert columns is None
    assert note == "0, 1 of d: taken to be the classes of m, in this order"
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
    source, names, _ = open_labelled(str(pets), ["owl", "dog", "cat"], 3, channels=3)
    assert source.labels.tolist() == [2, 0]
    assert names == ["owl", "dog", "cat"]
    source, names, note = open_labelled(str(pets), None, 2, channels=3)
    assert (source.labels.tolist(), names) == ([0, 1], ["cat", "owl"])
    assert note is not None
    with pytest.raises(XciteError, match="does not know owl"):
        open_labelled(str(pets), ["cat", "dog"], 2, channels=3)


def test_folders_with_numbers_for_names_are_places(pets: Path) -> None:
    for number, name in enumerate(("cat", "owl")):
        (pets / name).rename(pets / str(number))
    source, names, note = open_labelled(str(pets), ["dog", "emu"], 2, channels=3, model="m")
    assert (source.labels.tolist(), names) == ([0, 1], ["dog", "emu"])
    assert note == f"0, 1 of {pets}: taken to be the classes of m, in this order"


def test_the_numbers_of_a_list_file_are_places(pets: Path) -> None:
    (pets / "list.txt").write_text("owl/one.png 2\ncat/one.png 0\n", encoding="utf-8")
    for known in (["cat", "dog", "owl", "emu"], None):
        source, names, note = open_labelled(str(pets / "list.txt"), known, 4, channels=3)
        assert source.labels.tolist() == [2, 0]
        assert names == (known or ["0", "1", "2", "3"])
        assert note is None


def test_probabilities_survive_large_logits() -> None:
    found = probabilities(np.array([[1e4, 1e4 - 1, -1e4]], np.float32))
    np.testing.assert_allclose(found, [[0.7310586, 0.2689414, 0]], atol=1e-6)
    assert probabilities(np.array([[1e4, 0.0]], np.float32)).tolist() == [[1, 0]]


def test_equal_answers_come_in_the_order_of_the_classes() -> None:
    shares = np.array([0.2, 0.3, 0.2, 0.3])
    assert top_classes(shares, 3).tolist() == [1, 3, 0]
    assert ranked(shares, ["a", "b"], 3) == [("b", 0.3), ("3", 0.3), ("a", 0.2)]
    assert ranked(shares, None, 9)[0] == ("1", 0.3)
