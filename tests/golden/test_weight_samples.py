"""Files written by other programs load exactly, and give the logits those programs gave."""

from dataclasses import replace

import numpy as np
import pytest
from weight_samples import REGNET, XCIT, reference, unpack

import xcite
from reference_rule import reference_images
from xcite.engines import create_engine, installed
from xcite.errors import XciteError
from xcite.weights import open_weights

# file: dialect, architecture of the net inside, factor of its numbers
WHOLE = {
    "xcit_shrunk_official.pth": ("official", XCIT),
    "xcit_shrunk_official_archive.pth": ("official", XCIT),
    "xcit_shrunk_official_legacy.pth": ("official", XCIT),
    "xcit_shrunk_official_train_ckpt.pth": ("official", XCIT),
    "xcit_shrunk_timm.safetensors": ("timm", XCIT),
    "xcit_shrunk_timm_plain.pth": ("timm", XCIT),
    "xcit_shrunk_passl.pdparams": ("passl", XCIT),
    "xcit_shrunk_passl_protocol2.pdparams": ("passl", XCIT),
    "xcit_shrunk_passl_numpy2.pdparams": ("passl", XCIT),
    "xcit_shrunk_passl_sliced.pdparams": ("passl", XCIT),
    "xcit_shrunk_passl_epoch_1.pd": ("passl", XCIT),
    "xcit_shrunk_passl_student_extracted.pdparams": ("passl", XCIT),
    "distill_shrunk_passl_epoch_1.pd": ("passl", XCIT),
    "xcit_shrunk_ppcls.pdparams": ("ppcls", XCIT),
    "distill_shrunk_ppcls_best_model.pdparams": ("ppcls", XCIT),
    "xcit_shrunk_paddlevit.pdparams": ("ppcls", XCIT),
    "xcit_shrunk_paddlevit_ckpt.pdparams": ("ppcls", XCIT),
    "regnet_shrunk_deit.pth": ("official", REGNET),
    "regnet_shrunk_timm.safetensors": ("official", REGNET),
    "regnet_shrunk_passl.pdparams": ("passl", REGNET),
    "regnet_shrunk_passl_numpy2.pdparams": ("passl", REGNET),
    "regnet_shrunk_ppcls.pdparams": ("ppcls", REGNET),
    "regnet_shrunk_ppcls_no_conv_bias.pdparams": ("ppcls", REGNET),
    "regnet_shrunk_paddlevit.pdparams": ("paddlevit", REGNET),
}
A_FEW = [  # of each layout one
    "xcit_shrunk_official.pth",
    "xcit_shrunk_timm.safetensors",
    "xcit_shrunk_passl.pdparams",
    "regnet_shrunk_deit.pth",
    "regnet_shrunk_passl.pdparams",
]
FOLDED = "regnet_shrunk_passl_nonzero_conv_bias.pdparams"


@pytest.fixture(scope="session")
def samples(tmp_path_factory):
    return unpack(tmp_path_factory.mktemp("weight_samples"))


def assert_equal(tensors, expected):
    assert list(tensors) == list(expected)
    for name, array in expected.items():
        assert tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(tensors[name], array, err_msg=name)


@pytest.mark.parametrize("name", WHOLE)
def test_the_numbers_are_exact(samples, name):
    dialect, architecture = WHOLE[name]
    opened = open_weights(samples / name, architecture=architecture)
    assert opened.dialect == dialect
    assert_equal(opened.tensors, reference(architecture))


@pytest.mark.parametrize("name", WHOLE)
def test_the_architecture_is_read_from_the_shapes(samples, name):
    read = open_weights(samples / name).architecture
    wanted = WHOLE[name][1]
    if wanted is XCIT:
        # What shapes do not show is assumed, and said to be.
        assert replace(read, tokens_norm=False) == XCIT
    else:
        assert read.stages() == REGNET.stages()
        assert (read.stem_width, read.se_ratio, read.num_classes) == (32, 0.25, 10)


@pytest.mark.parametrize("engine", installed())
@pytest.mark.parametrize("chosen", [A_FEW, pytest.param(list(WHOLE), marks=pytest.mark.slow)])
def test_logits_are_those_of_the_original_programs(samples, engine, chosen):
    expected = np.load(samples / "expected.npz")
    for architecture, key, shape in (
        (XCIT, "xcit_shrunk", (2, 3, 48, 80)),
        (REGNET, "regnet_shrunk", (2, 3, 64, 96)),
    ):
        model = create_engine(engine, architecture)
        for name in (name for name in chosen if WHOLE[name][1] is architecture):
            opened = open_weights(samples / name, architecture=architecture)
            model.load_weights(opened.tensors)
            # float32 on either framework is within 5e-6 of the float64 originals.
            np.testing.assert_allclose(
                model.predict(reference_images(shape, seed=0)),
                expected[key],
                atol=2e-5,
                rtol=0,
                err_msg=name,
            )


@pytest.mark.parametrize("engine", installed())
def test_convolution_biases_are_folded_into_batch_norm(samples, engine):
    model = create_engine(engine, REGNET)
    model.load_weights(open_weights(samples / FOLDED, architecture=REGNET).tensors)
    expected = np.load(samples / "expected.npz")["regnet_shrunk_nonzero_conv_bias"]
    answered = model.predict(reference_images((2, 3, 64, 96), seed=0))
    np.testing.assert_allclose(answered, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("engine", installed())
def test_a_model_takes_a_file_of_any_dialect(samples, engine):
    fields = {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 10}
    model = xcite.create_model(
        "xcit_nano_12_p8", engine=engine, weights=samples / "xcit_shrunk_passl.pdparams", **fields
    )
    assert_equal(xcite.read_weights(model), reference(XCIT))
    with pytest.raises(XciteError, match="head of 10 classes, the model has 7"):
        xcite.create_model(
            "xcit_nano_12_p8",
            engine=engine,
            weights=samples / "xcit_shrunk_timm.safetensors",
            **{**fields, "num_classes": 7},
        )
    model = xcite.create_model(
        "xcit_nano_12_p8",
        engine=engine,
        weights=samples / "xcit_shrunk_timm.safetensors",
        reset_head=True,
        **{**fields, "num_classes": 7},
    )
    loaded = xcite.read_weights(model)
    assert loaded["head.weight"].shape == (7, 32)
    np.testing.assert_array_equal(loaded["norm.weight"], reference(XCIT)["norm.weight"])


def test_parts_of_checkpoints(samples):
    distilled = samples / "distill_shrunk_passl_epoch_1.pd"
    opened = open_weights(distilled)
    assert opened.parts == ("student", "teacher")
    assert opened.part == "student"
    assert "student" in opened.metadata.provenance["notes"][0]
    teacher = open_weights(distilled, part="teacher")
    assert teacher.architecture.stages() == REGNET.stages()
    assert_equal(teacher.tensors, reference(REGNET))
    for name in ("xcit_shrunk_official_train_ckpt.pth", "xcit_shrunk_paddlevit_ckpt.pdparams"):
        average = open_weights(samples / name, part="ema")
        # The writers halved the average's floats to show which part was read.
        expected = {
            k: v if v.dtype == np.int64 else (0.5 * v).astype(np.float32)
            for k, v in reference(XCIT).items()
        }
        assert_equal(average.tensors, expected)
    with pytest.raises(XciteError, match="no part 'ema'; it holds student, teacher"):
        open_weights(distilled, part="ema")


def test_a_file_without_classifier_says_so(samples):
    path = samples / "xcit_shrunk_passl_backbone_extracted.pdparams"
    assert open_weights(path).architecture.num_classes == 0
    with pytest.raises(XciteError, match="no classification head, the model has 10"):
        open_weights(path, architecture=XCIT)
    opened = open_weights(path, architecture=XCIT, reset_head=True)
    assert opened.missing == ["head.weight", "head.bias"]
    # Ten other classes: the head is left out although its size fits.
    other = open_weights(samples / "xcit_shrunk_passl.pdparams", architecture=XCIT, reset_head=True)
    assert other.missing == ["head.weight", "head.bias"]
    assert "head.weight" not in other.tensors


def test_misfits_are_named(samples):
    path = samples / "xcit_shrunk_official.pth"
    deeper = replace(XCIT, depth=3)
    with pytest.raises(XciteError, match=r"missing: blocks\.2\.gamma1.* and \d+ more"):
        open_weights(path, architecture=deeper)
    with pytest.raises(XciteError, match=r"not part of the model: blocks\.1\.gamma1"):
        open_weights(path, architecture=replace(XCIT, depth=1))
    with pytest.raises(XciteError, match=r"of another shape: blocks\.0\.attn\.temperature is \(2"):
        open_weights(path, architecture=replace(XCIT, num_heads=4))
    with pytest.raises(XciteError, match="holds an XCiT, the model is a RegNet"):
        open_weights(path, architecture=REGNET)


def test_another_number_of_input_channels(samples):
    path = samples / "xcit_shrunk_passl.pdparams"
    kernel = reference(XCIT)["patch_embed.proj.0.0.weight"]
    grey = replace(XCIT, in_chans=1)
    with pytest.raises(XciteError, match="3 input channels, the model 1"):
        open_weights(path, architecture=grey)
    fitted = open_weights(path, architecture=grey, adapt_channels=True).tensors
    summed = fitted["patch_embed.proj.0.0.weight"]
    np.testing.assert_allclose(summed[:, 0], kernel.sum(1), rtol=1e-6, atol=1e-7)
    five = open_weights(path, architecture=replace(XCIT, in_chans=5), adapt_channels=True).tensors
    widened = five["patch_embed.proj.0.0.weight"]
    np.testing.assert_allclose(widened[:, 3], 0.6 * kernel[:, 0], rtol=1e-6, atol=1e-7)
