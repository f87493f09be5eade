"""Every augmentation and the evaluation transform, bit for bit as timm makes them."""

import json
import random
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from xcite.data import mixing, randaugment, transforms
from xcite.data.pipeline import epoch_length, view_order
from xcite.preprocessing import Preprocessing
from xcite.recipe_sections import AugmentRecipe

FIXTURES = Path(__file__).parents[1] / "fixtures"
PICTURES = np.load(FIXTURES / "augmentation/pictures.npz")
FILL = randaugment.fill_colour(Preprocessing().mean)
# Pillow 13 changed the order of the two resize passes; both orders are known
PILLOW_12 = int(PIL.__version__.split(".")[0]) < 13
OLD_VALUES = np.load(FIXTURES / "augmentation/pillow_12.npz")


def described(name):
    return json.loads((FIXTURES / f"augmentation/{name}.json").read_text(encoding="utf-8"))


def arrays(name):
    return np.load(FIXTURES / f"augmentation/{name}.npz")


def expected(name, key, index=None):
    old = "__".join([name, key] + ([] if index is None else [str(index)]))
    if PILLOW_12 and old in OLD_VALUES:
        return OLD_VALUES[old]
    stored = arrays(name)[key]
    return stored if index is None else stored[index]


class Given:
    """Draws from lists of unit numbers, for rules without a generator."""

    def __init__(self, units, whole=(), gate=None):
        self.units, self.whole = list(units), list(whole)
        self.gate = gate

    def random(self):
        return self.gate

    def uniform(self, low, high):
        return low + (high - low) * self.units.pop(0)

    def integers(self, low, high, endpoint):
        return min(high, low + int(self.whole.pop(0) * (high - low + 1)))


class Legacy:
    """Draws as timm takes them: Python's generator, and NumPy's global one for choosing."""

    def __init__(self, python_seed=0, numpy_seed=0):
        self.python = random.Random(python_seed)
        self.numpy = np.random.RandomState(numpy_seed)
        self.uniform = self.python.uniform
        self.normal = self.python.gauss

    def random(self):
        return self.python.random()

    def integers(self, low, high, endpoint):
        assert endpoint
        return self.python.randint(low, high)


class Choosing(Legacy):
    """RandAugment chooses operations with NumPy's generator."""

    def integers(self, low, high, endpoint):
        return self.numpy.randint(low, high + endpoint)


class LegacyNumpy:
    """NumPy's global generator, from which timm mixes."""

    def __init__(self, seed):
        state = np.random.RandomState(seed)
        self.random, self.beta, self.integers = state.rand, state.beta, state.randint


@pytest.mark.parametrize("operation", randaugment.OPERATIONS, ids=lambda o: o.name)
def test_randaugment_operations(operation):
    stored = arrays("randaugment")
    variants = described("randaugment")["variants"][operation.name]
    for name in ("p0", "p4", "p5", "p6"):
        image = Image.fromarray(PICTURES[name])
        results = stored[f"{name}__{operation.name}"]
        for variant, result in zip(variants, results, strict=False):
            ours = operation.apply(image, variant["argument"], FILL)
            np.testing.assert_array_equal(np.asarray(ours), result, str((name, variant)))


def test_randaugment_arguments():
    for number, described_operation in enumerate(described("randaugment")["ops"]):
        operation = randaugment.OPERATIONS[number]
        assert operation.name == described_operation["name"]
        assert operation.signed == described_operation["sign_drawn"]
        for magnitude, *values in described_operation.get("table", []):
            signs = (1, -1)[: len(values)]
            assert [operation.argument(magnitude / 10, sign) for sign in signs] == values


def test_randaugment_chains_and_seeded_runs():
    stored, description = arrays("randaugment"), described("randaugment")
    image = Image.fromarray(PICTURES["p0"])
    by_name = {operation.name: operation for operation in randaugment.OPERATIONS}
    for chain, result in zip(description["chains"], stored["chain__p0"], strict=True):
        steps = [(by_name[step["op"]], step["argument"]) for step in chain]
        np.testing.assert_array_equal(np.asarray(randaugment.apply(image, steps, FILL)), result)
    policy = randaugment.parse("rand-m9-mstd0.5-inc1")
    for trace, result in zip(description["traces"], stored["trace__p0"], strict=True):
        drawn = randaugment.draw(Choosing(trace["python_seed"], trace["numpy_seed"]), policy)
        assert [(operation.name, argument) for operation, argument in drawn] == [
            (step["op"], step["argument"]) for step in trace["applied"]
        ]
        np.testing.assert_array_equal(np.asarray(randaugment.apply(image, drawn, FILL)), result)


def test_random_resized_crop_boxes():
    description = described("random_resized_crop")
    for case in description["draw_cases"]:
        if 0 in case["box"][2:]:
            continue  # timm accepts empty boxes of the tiniest pictures; ours are never empty
        draws = Given(case["unit_uniform"], case["unit_int"])
        box = transforms.random_resized_crop_box(draws, case["height"], case["width"])
        assert list(box) == case["box"]
    for trace in description["seed_traces"]:
        draws = Legacy(trace["python_seed"])
        box = transforms.random_resized_crop_box(draws, trace["height"], trace["width"])
        assert list(box) == trace["box"]


def test_random_resized_crop_statistics():
    distribution = described("random_resized_crop")["distribution"][0]
    draws = np.random.default_rng(1)
    height, width, number = distribution["height"], distribution["width"], 20_000
    boxes = np.array(
        [transforms.random_resized_crop_box(draws, height, width) for _ in range(number)]
    )
    areas = boxes[:, 2] * boxes[:, 3] / (height * width)
    # three standard errors of a quantile of 20,000 samples are at most about 0.012 here
    quantiles = np.quantile(areas, distribution["quantiles"])
    np.testing.assert_allclose(quantiles, distribution["area_fraction"], atol=0.015)


@pytest.mark.parametrize("key", ["p0__32", "p0__48", "p1__32", "p1__48", "p3__32", "p3__224_box1"])
def test_cropping_and_resizing(key):
    name = key[:2]
    image = Image.fromarray(PICTURES[name])
    boxes = described("random_resized_crop")["boxes"][name]
    for number, (top, left, height, width) in enumerate(boxes):
        cropped = image.crop((left, top, left + width, top + height))
        if key.endswith("box1"):
            if number == 1:
                ours = np.asarray(transforms.resize(cropped, 224))
                np.testing.assert_array_equal(ours, expected("random_resized_crop", key))
            continue
        ours = np.asarray(transforms.resize(cropped, int(key[4:])))
        np.testing.assert_array_equal(ours, expected("random_resized_crop", key, number))


@pytest.mark.skipif(PILLOW_12, reason="transposing gives Pillow 12's order of passes only on 13")
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_fast_resizing_differs_by_rounding_only(mode, interpolation):
    # Weights of 16 bits against Pillow's 22: now and then a pass is one level off, and there are
    # two. It goes across first, as Pillow did up to 12. Bilinear values are often halves.
    turn = Image.Transpose.TRANSPOSE
    for name in ("p0", "p1", "p3", "p6"):
        picture = Image.fromarray(PICTURES[name]).convert(mode)
        for size in (32, 224):
            exact = transforms.resize(picture.transpose(turn), size, interpolation).transpose(turn)
            fast = transforms.fast_resize(picture, size, interpolation)
            difference = np.asarray(fast).astype(int) - np.asarray(exact)
            assert np.abs(difference).max() <= 2
            assert (difference != 0).mean() < {"bicubic": 0.01, "bilinear": 0.1}[interpolation]


def test_colour_jitter():
    stored, description = arrays("colour_jitter"), described("colour_jitter")
    kinds = ["brightness", "contrast", "saturation"]
    for which, kind in enumerate(kinds):
        for name in ("p0", "p6"):
            image = Image.fromarray(PICTURES[name])
            factors = description["variants"][kind]
            for factor, result in zip(factors, stored[f"{name}__{kind}"], strict=True):
                ours = transforms.color_jitter(image, [(which, factor)])
                np.testing.assert_array_equal(np.asarray(ours), result)
    image = Image.fromarray(PICTURES["p0"])
    for chain, result in zip(description["chains"], stored["chain__p0"], strict=True):
        jitters = [(kinds.index(kind), chain["factors"][kind]) for kind in chain["order"]]
        np.testing.assert_array_equal(np.asarray(transforms.color_jitter(image, jitters)), result)


def test_drawn_jitter_has_three_factors_in_range_and_any_order():
    orders = set()
    for seed in range(200):
        drawn = transforms.draw_color_jitter(np.random.default_rng(seed), 0.4)
        orders.add(tuple(which for which, _ in drawn))
        assert all(0.6 <= factor <= 1.4 for _, factor in drawn)
    assert len(orders) == 6


def test_random_erasing_boxes():
    description = described("random_erasing")
    for case in description["draw_cases"]:
        draws = Given(case["unit_uniform"], case["unit_int"], case["gate_unit"])
        box = transforms.random_erasing_box(draws, case["height"], case["width"])
        assert (None if box is None else list(box)) == case["box"]
    for trace in description["seed_traces"]:
        draws = Legacy(trace["python_seed"])
        box = transforms.random_erasing_box(draws, trace["height"], trace["width"])
        assert (None if box is None else list(box)) == trace["box"]


def test_evaluation_pixels_and_normalisation():
    stored = arrays("evaluation")
    seen = 0
    for key in stored.files:
        if not key.endswith("__u8"):
            continue
        name, path, size = key.split("__")[:3]
        picture = PICTURES["p1"][:, :40] if name == "p1tall" else PICTURES[name]
        ratio = {"full_crop": 1.0, "crop875": 0.875}.get(path)
        if ratio is None:
            continue
        preprocessing = Preprocessing(size=int(size), crop_ratio=ratio)
        ours = transforms.evaluation_pixels(picture, preprocessing)
        result = stored[key]
        old = f"evaluation__{key.removesuffix('__u8')}"
        if PILLOW_12 and old in OLD_VALUES:
            result = OLD_VALUES[old]
        np.testing.assert_array_equal(ours, result, key)
        floats = key.replace("__u8", "__f32")
        if floats in stored and result is stored[key]:
            normalised = transforms.normalise(stored[key][None], preprocessing)[0]
            np.testing.assert_array_equal(normalised, stored[floats], key)
        seen += 1
    assert seen >= 10


def test_evaluation_geometry():
    columns = described("evaluation")["geometry"]
    for width, height, short, crop, new_width, new_height, top, left in columns:
        preprocessing = Preprocessing(size=crop, crop_ratio=crop / short if crop < short else 1.0)
        if transforms.covered(preprocessing) != (short, short):
            continue  # crops larger than the resized picture cannot be asked for
        image = Image.new("L", (width, height))
        resized = transforms.resize_to_cover(image, preprocessing)
        assert resized.size == (new_width, new_height)
        marked = Image.new("L", resized.size)
        if top >= 0 and left >= 0:
            marked.putpixel((left, top), 255)
            assert transforms.centre_crop(marked, crop).getpixel((0, 0)) == 255


@pytest.mark.parametrize("size", [14, 16, 17])
def test_centre_crop_pads_what_is_too_small(size):
    ours = transforms.centre_crop(Image.fromarray(PICTURES["p5"]), size)
    key = f"p5__centercrop_{size}"
    stored = arrays("evaluation")
    match = next(name for name in stored.files if name.startswith(key))
    np.testing.assert_array_equal(np.asarray(ours), stored[match])


@pytest.mark.skipif(PILLOW_12, reason="stored with Pillow 13's order of resize passes")
def test_whole_training_transform():
    description, stored = described("train_pipeline"), arrays("train_pipeline")
    policy = randaugment.parse("rand-m9-mstd0.5-inc1")
    for run, result in zip(description["runs"], stored["u8_before_normalise"], strict=True):
        draws = Choosing(run["python_seed"], run["numpy_seed"])
        crops = Legacy(run["python_seed"])
        crops.python = draws.python
        crops.uniform = draws.python.uniform
        image = Image.fromarray(PICTURES[run["picture"]])
        box = transforms.random_resized_crop_box(crops, image.height, image.width)
        assert list(box) == run["crop_box"]
        top, left, height, width = box
        image = transforms.resize(image.crop((left, top, left + width, top + height)), 32)
        if run["flipped"]:
            image = transforms.flip(image)
        image = randaugment.apply(image, randaugment.draw(draws, policy), FILL)
        np.testing.assert_array_equal(np.asarray(image), result)
        erased = transforms.random_erasing_box(crops, 32, 32)
        assert (None if erased is None else list(erased)) == run["erase_box"]


MIXING = json.loads((FIXTURES / "mixup/mixup.json").read_text(encoding="utf-8"))


def test_cutmix_boxes():
    for height, width, share, row, column, box, out, old_box, old_out in MIXING["box_table"]:
        for rule, result, kept in (("timm-1.0", box, out), ("timm-0.4.9", old_box, old_out)):
            ours = mixing.cutmix_box(height, width, share, row, column, rule)
            assert list(ours) == result
            area = (ours[1] - ours[0]) * (ours[3] - ours[2])
            assert 1 - area / (height * width) == kept


def test_mixing_draws_for_whole_batches():
    augment = AugmentRecipe(cutmix_box="timm-1.0")
    for trace in MIXING["seed_traces"]["batch"]:
        drawn = mixing.draw_share(LegacyNumpy(trace["numpy_seed"]), augment)
        assert drawn == (trace["lam"], trace["use_cutmix"])
        ours = mixing.draw(LegacyNumpy(trace["numpy_seed"]), 5, 32, 32, augment)
        if trace["use_cutmix"]:
            assert ours.boxes.tolist() == [trace["box_for_32x32"]] * 5
            assert ours.share[0] == np.float32(trace["corrected_lam"])
        else:
            assert (ours.boxes == -1).all()
            assert abs(ours.share[0] - trace["lam"]) < 2**-24


@pytest.mark.parametrize("mode", ["elem", "pair"])
def test_mixing_draws_for_single_pictures(mode):
    augment = AugmentRecipe(mix_mode=mode)
    for trace in MIXING["seed_traces"][mode]:
        shares, cutmix = mixing.draw_shares(LegacyNumpy(trace["numpy_seed"]), trace["n"], augment)
        np.testing.assert_array_equal(shares, np.float32(trace["lam"]))
        assert cutmix.tolist() == trace["use_cutmix"]


def test_soft_targets():
    stored = np.load(FIXTURES / "mixup/mixup.npz")
    for case in MIXING["cases"]:
        if case["mode"] != "batch":
            continue  # the others' lists name only the pictures with a box
        share = np.full(6, (case["corrected_lam"] or [case["lam"]])[0], np.float32)
        ours = mixing.soft_targets(
            stored["labels"], 10, 0.1, mixing.Mixing(share, np.full((6, 4), -1))
        )
        # half a unit in the last place of 1: timm rounds 1 - lambda from float64
        np.testing.assert_allclose(ours, stored[f"{case['name']}__t"], rtol=0, atol=6e-8)


def test_repeated_augmentation_order():
    stored = arrays("repeated_augmentation")
    for epoch in (0, 1):
        order = view_order(stored[f"torch_randperm__n1000__seed{epoch}"], 3)
        assert len(order) == epoch_length(1000, 3) == 768
        alone = stored[f"official__n1000__rep1__rank0__epoch{epoch}"]
        np.testing.assert_array_equal(order[:, 0], alone)
        for rank in (0, 1):  # two processes: every step sees the same pictures
            shared = stored[f"official__n1000__rep2__rank{rank}__epoch{epoch}"]
            np.testing.assert_array_equal(order[rank::2, 0], shared)
    assert order[:6, 1].tolist() == [0, 1, 2, 0, 1, 2]
    for replicas in (1, 2, 3, 4):
        order = view_order(np.arange(300), 3)[:, 0]
        for rank in range(replicas):
            listed = stored[f"official_noshuffle__n300__rep{replicas}__rank{rank}"]
            np.testing.assert_array_equal(order[rank::replicas][: len(listed)], listed)


@pytest.mark.parametrize("pictures", [1, 2, 100, 255])
def test_small_sets_have_an_epoch_under_repeated_augmentation(pictures):
    assert epoch_length(pictures, 3) == pictures
