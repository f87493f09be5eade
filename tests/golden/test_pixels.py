"""Normalising, erasing and mixing: the model's input, bit for bit."""

import json
from pathlib import Path

import numpy as np
import pytest

from xcite.data.batch import Batch, Mixing
from xcite.data.transforms import normalise
from xcite.engines.pixels import mix, model_input
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing

FOLDER = Path(__file__).parents[1] / "fixtures/mixup"
CASES = {
    case["name"]: case
    for case in json.loads((FOLDER / "mixup.json").read_text(encoding="utf-8"))["cases"]
}
ARRAYS = np.load(FOLDER / "mixup.npz")


def mixing(case, version):
    """What the loader would hand over for a case of the reference: share and box per picture."""
    size, mode = len(ARRAYS["x"]), case["mode"]
    boxes = np.full((size, 4), -1, np.int32)
    suffix = "_timm_0_4_9" if version == "049" else ""
    given = case[f"boxes{suffix}" if suffix else "boxes_yl_yh_xl_xh"]
    if mode == "batch":  # drawn in float64; with elem and pair timm keeps lambda in float32
        if case["use_cutmix"]:
            boxes[:] = given[0]
        return Mixing(np.full(size, case["lam"]), boxes)
    share = np.array(case["lam"], np.float32)
    pasted = [i for i, cutmix in enumerate(case["use_cutmix"]) if cutmix and share[i] != 1]
    for i, box in zip(pasted, given, strict=True):
        boxes[i] = box
        if mode == "pair":
            boxes[size - 1 - i] = box
    if mode == "pair":
        share = np.concatenate([share, share[::-1]])
    return Mixing(share, boxes)


@pytest.mark.parametrize("version", ["", "049"])
@pytest.mark.parametrize("name", CASES)
def test_mixing_is_bit_identical_to_timm(name, version):
    case = CASES[name]
    if version and case["same_in_0_4_9"]:
        version = ""
    expected = ARRAYS[f"{name}__x{version}"]
    np.testing.assert_array_equal(mix(ARRAYS["x"], mixing(case, version)), expected)


def test_normalised_erased_then_mixed():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    noise = rng.standard_normal((3, 2, 3)).astype(np.float32)
    boxes = np.full((4, 4), -1, np.int32)
    boxes[2] = 1, 3, 0, 4
    share = np.array([0.25, 1, 0.6, 1], np.float32)
    preprocessing = Preprocessing()
    batch = Batch(
        pictures,
        np.zeros(4, np.int64),
        np.zeros((4, 2), np.int64),
        erased=[(1, 3, 2, noise)],
        mixing=Mixing(share, boxes),
    )
    images = model_input(batch, preprocessing)

    plain = normalise(pictures, preprocessing)
    value = (np.float32(pictures[3, 5, 4, 1]) / np.float32(255) - np.float32(0.456)) / np.float32(
        0.224
    )
    assert plain[3, 1, 5, 4] == value
    np.testing.assert_array_equal(images[3], plain[3])
    np.testing.assert_array_equal(images[1][:, 3:5, 2:5], noise)
    expected = plain[0] * share[0] + plain[3] * (1 - share[0])
    np.testing.assert_array_equal(images[0], expected)
    # the partner's erased box is pasted along: erasing comes before mixing
    erased = plain[1].copy()
    erased[:, 3:5, 2:5] = noise
    pasted = plain[2].copy()
    pasted[:, 1:3, :4] = erased[:, 1:3, :4]
    np.testing.assert_array_equal(images[2], pasted)


def test_wrong_number_of_channels_is_refused():
    grey = np.zeros((1, 4, 4, 1), np.uint8)
    with pytest.raises(XciteError, match="1 channels"):
        normalise(grey, Preprocessing())
