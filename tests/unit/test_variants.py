"""The table of models: shapes against the official manifests, costs against published counts."""

import pytest

import xcite
from xcite.canonical import initial_weights, is_parameter, parameter_count, shapes
from xcite.cost import multiply_adds
from xcite.errors import XciteError
from xcite.recipe import parse
from xcite.variants import ARCHITECTURES, RegNetArchitecture, find, published

# Parameters in millions and GMACs at 224 and 384 as timm's results tables give them.
TIMM = {
    "xcit_nano_12_p16": (3.05, 0.56, 1.64),
    "xcit_tiny_12_p16": (6.72, 1.24, 3.64),
    "xcit_tiny_24_p16": (12.12, 2.34, 6.87),
    "xcit_small_12_p16": (26.25, 4.82, 14.14),
    "xcit_small_24_p16": (47.67, 9.10, 26.72),
    "xcit_medium_24_p16": (84.40, 16.13, 47.39),
    "xcit_large_24_p16": (189.10, 35.86, 105.4),
    "xcit_nano_12_p8": (3.05, 2.16, 6.34),
    "xcit_tiny_12_p8": (6.71, 4.81, 14.13),
    "xcit_tiny_24_p8": (12.11, 9.21, 27.05),
    "xcit_small_12_p8": (26.21, 18.69, 54.92),
    "xcit_small_24_p8": (47.63, 35.81, 105.2),
    "xcit_medium_24_p8": (84.32, 63.53, 186.7),
    "xcit_large_24_p8": (188.93, 141.2, 415.0),
    "regnety_160": (83.59, 15.96, 46.87),
}
# Millions of parameters in timm's results tables (tf_efficientnet_lite*).
LITE = dict(enumerate((4.65, 5.42, 6.09, 8.20, 13.01)))


def test_the_table_is_complete() -> None:
    assert set(TIMM) | {f"efficientnet_lite{n}" for n in LITE} == set(ARCHITECTURES)
    assert len(published()) == 42
    assert {row.architecture for row in published()} == set(TIMM) - {"regnety_160"}
    champion = next(row for row in published() if row.name == "xcit_nano_12_p8_224_dist")
    assert (champion.top1, champion.resolution, champion.distilled) == (76.3, 224, True)


@pytest.mark.parametrize(("number", "millions"), LITE.items())
def test_parameters_of_efficientnet_lite(number: int, millions: float) -> None:
    architecture = ARCHITECTURES[f"efficientnet_lite{number}"]
    assert parameter_count(architecture) / 1e6 == pytest.approx(millions, abs=0.006)


def test_work_of_efficientnet_lite() -> None:
    assert multiply_adds(find("efficientnet_lite0"), 224, 224) / 1e9 == pytest.approx(
        0.41, abs=0.03
    )


@pytest.mark.parametrize("name", TIMM)
def test_parameters_and_cost(name: str) -> None:
    millions, at_224, at_384 = TIMM[name]
    architecture = ARCHITECTURES[name]
    # Half a unit of the last published digit.
    assert parameter_count(architecture) / 1e6 == pytest.approx(millions, abs=0.005)
    # timm's counter sees class attention a little differently: 1 %.
    assert multiply_adds(architecture, 224, 224) / 1e9 == pytest.approx(at_224, rel=0.01)
    assert multiply_adds(architecture, 384, 384) / 1e9 == pytest.approx(at_384, rel=0.01)


def test_regnety_160_stages() -> None:
    architecture = ARCHITECTURES["regnety_160"]
    assert isinstance(architecture, RegNetArchitecture)
    assert architecture.stages() == [(224, 2, 2), (448, 4, 4), (1232, 11, 11), (3024, 1, 27)]


def test_covariance_form_is_cheaper_where_tokens_outnumber_channels() -> None:
    nano = ARCHITECTURES["xcit_nano_12_p8"]
    assert multiply_adds(nano, 224, 224, form="covariance") < multiply_adds(nano, 224, 224)
    wide = ARCHITECTURES["xcit_large_24_p16"]
    assert multiply_adds(wide, 224, 224, form="covariance") > multiply_adds(wide, 224, 224)


def test_names() -> None:
    assert xcite.list_models("nano_12_p8*dist") == [
        "xcit_nano_12_p8_224_dist",
        "xcit_nano_12_p8_384_dist",
    ]
    assert find("xcit_tiny_24_p8_384_dist") == ARCHITECTURES["xcit_tiny_24_p8"]
    with pytest.raises(xcite.XciteError, match="did you mean xcit_nano_12_p8"):
        find("xcit_nano_12p8")
    with pytest.raises(xcite.XciteError, match="no setting dept"):
        find("xcit_nano_12_p8", dept=3)
    with pytest.raises(xcite.XciteError, match="unknown model"):
        find("regnety_160_224")


@pytest.mark.parametrize(
    "overrides",
    [{"patch_size": 7}, {"num_heads": 3}, {"depth": -1}, {"in_chans": 0}, {"num_classes": -1}],
)
def test_impossible_architectures_are_refused(overrides: dict[str, int]) -> None:
    with pytest.raises(xcite.XciteError):
        find("xcit_nano_12_p8", **overrides)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    architecture = find("xcit_nano_12_p8", depth=1)
    first, again, other = (initial_weights(architecture, seed) for seed in (3, 3, 4))
    assert {name: value.shape for name, value in first.items()} == shapes(architecture)
    for name, value in first.items():
        assert (value == again[name]).all()
    assert (first["head.weight"] != other["head.weight"]).any()
    assert first["blocks.0.attn.qkv.weight"].std() == pytest.approx(0.02, rel=0.05)
    assert (first["blocks.0.gamma1"] == architecture.eta).all()
    assert not is_parameter("patch_embed.proj.0.1.running_mean")


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, field) for name in ("xcit_nano_12_p8",) for field in ("depth", "cls_attn_layers")]
    + [("xcit_nano_12_p8", "embed_dim"), ("xcit_nano_12_p8", "mlp_ratio")]
    + [("regnety_160", field) for field in ("depth", "w0", "wa", "stem_width", "se_ratio")],
)
def test_sizes_are_bounded_where_a_recipe_is_read(name, field):
    value = 1e9 if field in ("mlp_ratio", "wa", "se_ratio") else 1024 * 10**6
    with pytest.raises(XciteError, match=rf"{field} is .*; it must be from .* to "):
        find(name, **{field: value})
    with pytest.raises(XciteError, match=rf"{field} is"):
        parse(f"model: {{name: {name}, {field}: {value!r}}}", "test")


def test_a_growth_of_regnet_that_does_not_grow_is_refused():
    with pytest.raises(XciteError, match=r"wm is 1\.0; it must be"):
        find("regnety_160", wm=1.0)
