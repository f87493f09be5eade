"""Families: what is derived from the one walk over a family's layers, and what stands beside it."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest

from xcite import canonical, recipe
from xcite.cost import activations, multiply_adds
from xcite.engines import create_engine, installed
from xcite.engines.intermediates import feature_info
from xcite.errors import XciteError
from xcite.families import (
    ARCHITECTURES,
    FAMILIES,
    PAPER_DROP_PATH,
    PUBLISHED,
    EfficientNetLiteArchitecture,
    RegNetArchitecture,
    Settings,
    XCiTArchitecture,
    family_of_fields,
    family_of_tensors,
)
from xcite.families.family import Family
from xcite.families.layers import (
    ONCE,
    ZEROS,
    Layer,
    Part,
    Places,
    affine,
    batch_norm,
    he_normal,
    parameter,
    truncated_normal,
)
from xcite.variants import find
from xcite.weights import Metadata
from xcite.weights.dialects import TABLES

XCIT = XCiTArchitecture(8, 16, 2, 2, num_classes=3)
REGNET = RegNetArchitecture(8, 8.0, 2.0, 4, depth=4, stem_width=8, num_classes=5)
LITE = EfficientNetLiteArchitecture(
    (4, 4, 4, 4, 4, 8, 8), (1,) * 7, stem_width=8, features=8, num_classes=5
)
SMALL = {"xcit": XCIT, "regnet": REGNET, "efficientnet_lite": LITE}


@dataclass(frozen=True)
class Toy(Family):
    """A convolution of stride 4, one block of products, and a classifier."""

    num_classes: int = 5
    in_chans: int = 3

    def parts(self, form: str = "usual") -> Iterator[Part]:
        grid = Places(4)
        kernel = (8, self.in_chans, 3, 3)
        stem = affine("stem", kernel, he_normal(72), grid)
        yield Part("stem", [stem, batch_norm("bn", 8), Layer(places=grid, kept=16)])
        block = [parameter("b0.scale", (8,), ZEROS), Layer(places=grid, work=10, kept=24)]
        yield Part("b0", block, checkpoint=Layer(places=grid, kept=8))
        yield Part("b1", [Layer(places=grid, kept=20)], checkpoint=Layer(places=grid, kept=8))
        shape = (self.num_classes, 8)
        yield Part("head", [affine("head", shape, truncated_normal(0.02), ONCE, ZEROS)])

    @property
    def stride(self) -> int:
        return 4

    @property
    def num_features(self) -> int:
        return 8

    @classmethod
    def read(cls, named):
        raise NotImplementedError

    def structure(self) -> tuple[object, ...]:
        return ()


def test_everything_folds_over_the_walk_of_a_family() -> None:
    toy = Toy()
    shapes = canonical.shapes(toy)
    assert list(shapes) == [
        *("stem.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"),
        *("bn.num_batches_tracked", "b0.scale", "head.weight", "head.bias"),
    ]
    assert shapes["stem.weight"] == (8, 3, 3, 3)
    assert canonical.parameter_count(toy) == 8 * 27 + 8 + 8 + 8 + 5 * 8 + 5
    weights = canonical.initial_weights(toy)
    canonical.check(weights, toy)
    assert {name for name, value in weights.items() if value.dtype != np.float32} == {
        "bn.num_batches_tracked"
    }
    # 9 x 17 pixels are 3 x 5 cells of stride 4
    assert toy.grid(9, 17) == (3, 5)
    assert multiply_adds(toy, 9, 17) == 15 * 8 * 27 + 15 * 10 + 5 * 8
    assert activations(toy, 9, 17) == 15 * (16 + 24 + 20)
    # of the blocks only what goes in, and the larger one while it is computed again
    assert activations(toy, 9, 17, recompute=True) == 15 * (16 + 8 + 8 + 24)
    assert [block["module"] for block in feature_info(toy)] == ["b0", "b1"]
    assert toy.layer_groups()["bn.bias"] == "stem"
    assert (toy.drop_paths(), toy.without_dropout(), toy.in_words(32, 32)) == ((0, 0.0), toy, "")


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_is_known_everywhere(kind: str) -> None:
    family, architecture = FAMILIES[kind], SMALL[kind]
    shapes = canonical.shapes(architecture)
    assert family.kind == kind == architecture.kind
    assert family.title in family.with_article
    assert family_of_tensors(shapes) is family
    assert family_of_fields({field.name: None for field in fields(family)}) is family
    assert len(shapes[family.first_convolution]) == 4
    assert shapes[f"{family.head}weight"][0] == architecture.num_classes
    assert not any(
        name.startswith(family.head)
        for name in canonical.shapes(replace(architecture, num_classes=0))
    )
    assert {*family.answering} <= {*family.unreadable} <= {field.name for field in fields(family)}
    assert set(TABLES[kind]) >= {"xcite", "official"}
    assert any(isinstance(row, family) for row in ARCHITECTURES.values())


def test_what_belongs_to_no_family() -> None:
    with pytest.raises(XciteError, match=r"stem\.conv\.weight \(RegNetY\)"):
        family_of_tensors(["conv_stem.weight"])


def test_a_recipe_can_set_the_fields_of_every_family() -> None:
    """A field that is forgotten in a family's settings is found here."""
    by_the_data = {"num_classes", "in_chans"}
    only_in_code = {"qkv_bias", "use_pos", "attention_scale", "stem_strides"}
    only_in_code |= {"widths", "depths", "features"}
    known = {field.name for family in FAMILIES.values() for field in fields(family)}
    assert set(Settings.model_fields) == known - by_the_data - only_in_code
    # The order is that of a stored recipe, of which a hash is kept.
    assert list(recipe.ModelRecipe.model_fields) == [
        *("name", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "cls_attn_layers"),
        *("eta", "tokens_norm", "drop_path", "drop_rate", "attn_drop_rate"),
        *("w0", "wa", "wm", "group_size", "se_ratio", "stem_width"),
    ]


def test_the_published_tables_name_architectures() -> None:
    assert {row.architecture for row in PUBLISHED} <= set(ARCHITECTURES)
    assert set(PAPER_DROP_PATH) == {row.architecture for row in PUBLISHED}


# From the code before the families had files of their own: tensor, its second value with seed 1.
RECORDED = [
    ("xcit", "cls_token", -0.00170474022),
    ("xcit", "patch_embed.proj.2.0.weight", -0.0193127599),
    ("xcit", "blocks.0.attn.qkv.weight", 0.0056783692),
    ("xcit", "blocks.0.local_mp.conv1.bias", 0.0933345482),
    ("xcit", "pos_embeder.token_projection.bias", -0.0752228945),
    ("xcit", "head.weight", 0.0552961417),
    ("regnet", "stem.conv.weight", 0.100439601),
    ("regnet", "s1.b1.conv2.conv.weight", -0.356239736),
    ("regnet", "s2.b1.se.fc1.weight", 1.19565153),
    ("regnet", "head.fc.weight", 0.0134008406),
]


@pytest.mark.parametrize(("kind", "name", "value"), RECORDED)
def test_initial_weights_are_what_they_were(kind: str, name: str, value: float) -> None:
    # float32 has seven digits; the mathematical library may differ in the last
    assert canonical.initial_weights(SMALL[kind], 1)[name].flat[1] == pytest.approx(value, rel=1e-6)


PARTS = {
    "xcit": [
        *("patch_embed", "pos_embeder", "blocks.0", "blocks.1", "cls_token"),
        *("cls_attn_blocks.0", "cls_attn_blocks.1", "norm", "head"),
    ],
    "regnet": ["stem", "s1.b1", "s2.b1", "s3.b1", "s3.b2", "head"],
    "efficientnet_lite": ["conv_stem", *(f"blocks.{n}" for n in range(7)), "conv_head", "head"],
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_layer_groups_are_in_the_order_of_the_data(kind: str) -> None:
    groups = SMALL[kind].layer_groups()
    assert set(groups) == set(canonical.shapes(SMALL[kind]))
    assert list(dict.fromkeys(groups.values())) == PARTS[kind]
    for name, part in groups.items():
        assert name == part or name.startswith(f"{part}.")


@pytest.mark.parametrize("engine", installed())
@pytest.mark.parametrize("kind", FAMILIES)
def test_engines_name_their_outputs_by_the_parts(kind: str, engine: str) -> None:
    architecture = SMALL[kind]
    images = np.zeros((1, 3, 32, 32), np.float32)
    outputs = list(create_engine(engine, architecture).activations(images))
    assert outputs == PARTS[kind]
    assert {block["module"] for block in feature_info(architecture)} < set(outputs)


def test_drop_paths() -> None:
    architecture = replace(XCIT, drop_path=0.2, drop_rate=0.1, attn_drop_rate=0.1)
    assert architecture.drop_paths() == (2, 0.2)
    assert architecture.without_dropout() == XCIT
    assert REGNET.drop_paths() == (0, 0.0)


def test_grids() -> None:
    assert XCIT.grid(33, 16) == (5, 2)
    stem, *stages = (math.ceil(224 / 2**k) for k in range(1, 1 + 1 + len(REGNET.stages())))
    assert stem == 112
    assert REGNET.grid(224, 224) == (stages[-1], stages[-1])


# ---- strides of the stem -------------------------------------------------------------------------


def test_strides_are_part_of_the_description() -> None:
    usual = XCiTArchitecture(16, 32, 1, 2)
    robust = XCiTArchitecture(4, 32, 1, 2, stem_strides=(1, 1, 2, 2))
    assert XCiTArchitecture(4, 32, 1, 2, stem_strides=[1, 1, 2, 2]) == robust  # as JSON has it
    assert XCiTArchitecture(16, 32, 1, 2, stem_strides=(2, 2, 2, 2)) == usual
    assert robust.grid(32, 30) == (8, 8)
    assert robust.stem_widths() == usual.stem_widths()
    assert canonical.shapes(robust) == canonical.shapes(usual)
    assert robust.same_tensors(usual)
    assert not robust.same_tensors(XCiTArchitecture(4, 32, 1, 2))
    assert robust.structure() != usual.structure()
    # Descriptions with the usual strides are those of before the field existed.
    assert "stem_strides" not in usual.fields()
    for architecture in (usual, robust):
        told = json.loads(Metadata(architecture=architecture).model_dump_json())["architecture"]
        assert Metadata(architecture=told).described_architecture() == architecture


@pytest.mark.parametrize(
    ("strides", "said"),
    [
        ((1, 1, 2, 2, 1), "1 to 4 times 1 or 2"),
        ((), "1 to 4 times"),
        ((3, 1), "1 to 4 times"),
        ((1, 2, 2, 2), "make patches of 8 pixels; set patch_size to that, it is 4"),
    ],
)
def test_impossible_strides_are_refused(strides: tuple[int, ...], said: str) -> None:
    with pytest.raises(XciteError, match=said):
        XCiTArchitecture(4, 32, 1, 2, stem_strides=strides)


def test_work_of_the_stem_follows_its_strides() -> None:
    """Counted by hand: the convolutions see 32, 32, 16 and 8 pixels a side."""
    robust = XCiTArchitecture(4, 32, 0, 2, stem_strides=(1, 1, 2, 2), cls_attn_layers=0)
    stem = next(part for part in robust.parts() if part.name == "patch_embed")
    work = sum(layer.work * layer.places.times(32, 32) for layer in stem.layers)
    pairs = [(3, 4, 32), (4, 8, 32), (8, 16, 16), (16, 32, 8)]
    assert work == sum(9 * into * out * side * side for into, out, side in pairs)
    assert find("xcit_small_12_p4_32").stem_strides == (1, 1, 2, 2)
