"""A folder for timm: what timm's loader would make of it, and the way back.

docs/weights.md has the figure of timm itself, which needs torchvision.
"""

import json

import pytest

from xcite import cli
from xcite.canonical import initial_weights
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.variants import ARCHITECTURES, RegNetArchitecture, XCiTArchitecture, find
from xcite.weights import Metadata, open_weights, save_weights
from xcite.weights.convert import convert
from xcite.weights.imagenet import imagenet_classes
from xcite.weights.safetensors_files import read_safetensors
from xcite.weights.timm_hub import hub_config

# timm/models/_pretrained.py: PretrainedCfg refuses any other name
FIELDS = {
    *("custom_load", "tag", "input_size", "fixed_input_size", "interpolation", "crop_pct"),
    *("crop_mode", "mean", "std", "num_classes", "pool_size", "first_conv", "classifier"),
}
# timm/models/xcit.py: of class Xcit
ARGUMENTS = {
    *("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "cls_attn_layers"),
    *("use_pos_embed", "eta", "tokens_norm"),
}
OWN = XCiTArchitecture(16, 32, 1, 2, eta=0.5, num_classes=3, tokens_norm=False)
FOUR = Preprocessing(size=48, mean=(0.1, 0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7, 0.8))
NAMES = ["cat", "a|b <i> 猫", "LABEL_2"]


def saved(path, architecture, **metadata):
    save_weights(
        path, initial_weights(architecture), Metadata(architecture=architecture, **metadata)
    )
    return path


@pytest.mark.parametrize(
    ("architecture", "preprocessing"),
    [
        (OWN, Preprocessing(size=32, crop_ratio=0.9, interpolation="bilinear")),
        (OWN, Preprocessing(size=(32, 48), mean=(0, 0, 0), std=(1, 1, 1))),
        (XCiTArchitecture(8, 32, 1, 2, num_classes=3, in_chans=4, drop_path=0.1), FOUR),
        (XCiTArchitecture(8, 32, 1, 2, num_classes=3, in_chans=1, use_pos=False), None),
        (find("xcit_nano_12_p16", num_classes=3, tokens_norm=True), Preprocessing(size=384)),
        (find("xcit_nano_12_p16", num_classes=0), Preprocessing()),
        (find("xcit_nano_12_p16", num_classes=3, qkv_bias=False), None),
    ],
)
def test_there_and_back(tmp_path, architecture, preprocessing):
    names = NAMES if architecture.num_classes else None
    told = {"class_names": names, "preprocessing": preprocessing}
    source = saved(tmp_path / "a.safetensors", architecture, **told)
    convert(source, tmp_path / "hub", to="timm-hub")
    assert {p.name for p in (tmp_path / "hub").iterdir()} == {"config.json", "model.safetensors"}
    again = open_weights(tmp_path / "hub")
    assert again.architecture == architecture.without_dropout()
    assert again.metadata.class_names == names
    assumed = Preprocessing.assumed(architecture.in_chans)
    assert again.metadata.preprocessing == (preprocessing or assumed)
    assert "assumed" not in again.metadata.provenance
    tensors = again.tensors
    for name, array in open_weights(source).tensors.items():
        assert (tensors[name] == array).all()


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if "lite" not in n])
@pytest.mark.parametrize("changes", [{}, {"in_chans": 4}, {"num_classes": 0}])
def test_timm_takes_every_word(name, changes):
    architecture = find(name, **{"num_classes": 3, **changes})
    metadata = Metadata(preprocessing=FOUR if changes.get("in_chans") else Preprocessing(size=384))
    config = hub_config(architecture, metadata)
    cfg = config["pretrained_cfg"]
    xcit = name.startswith("xcit")
    size = "" if not xcit else "_224" if changes.get("in_chans") else "_384"
    assert config["architecture"] == name + size
    assert "model_args" not in config
    assert set(cfg) <= FIELDS
    assert cfg["num_classes"] == config["num_classes"] == architecture.num_classes
    assert cfg["input_size"][0] == len(cfg["mean"]) == architecture.in_chans
    first = "patch_embed.proj.0.0" if xcit else "stem.conv"
    # timm would take a kernel of four channels for one of three, and draw it anew
    assert cfg["first_conv"] == (None if changes.get("in_chans") else first)
    head = "head" if xcit else "head.fc"
    assert cfg["classifier"] == (head if architecture.num_classes else None)
    assert "fixed_input_size" in cfg
    assert not cfg["fixed_input_size"]


def test_a_family_without_timms_names_is_refused():
    with pytest.raises(XciteError, match="timm folders are written of regnety_160"):
        hub_config(find("efficientnet_lite0"), Metadata())


def test_other_models_come_with_arguments(tmp_path):
    config = hub_config(OWN, Metadata())
    assert config["architecture"] == "xcit_nano_12_p16_224"
    assert set(config["model_args"]) == ARGUMENTS
    assert (config["model_args"]["depth"], config["model_args"]["tokens_norm"]) == (1, False)
    source = saved(tmp_path / "a.safetensors", OWN)
    convert(source, tmp_path / "hub", to="timm-hub")
    state, _ = read_safetensors(tmp_path / "hub" / "model.safetensors")
    assert {"pos_embed.token_projection.weight", "cls_attn_blocks.1.attn.k.bias"} <= set(state)
    assert not any("pos_embeder" in name or ".attn.qkv" in name for name in state if "cls" in name)


@pytest.mark.parametrize(
    ("variant", "tag"),
    [
        ("xcit_nano_12_p16_224", "fb_in1k"),
        ("xcit_nano_12_p16_384_dist", "fb_dist_in1k"),
        ("xcit_nano_12_p16", None),
    ],
)
def test_imagenets_names_only_where_the_source_says_so(tmp_path, variant, tag):
    shape = find("xcit_nano_12_p16")
    for names in (imagenet_classes(), None):
        seen = Preprocessing(size=384 if "384" in variant else 224)
        told = {"variant": variant, "class_names": names, "preprocessing": seen}
        source = saved(tmp_path / "a.safetensors", shape, **told)
        convert(source, tmp_path / "hub", to="timm-hub")
        config = json.loads((tmp_path / "hub" / "config.json").read_text())
        assert config["pretrained_cfg"].get("tag") == (tag if names else None)
        again = open_weights(tmp_path / "hub").metadata
        # timm's name of the model is that of a published file, but says nothing of its classes
        assert again.class_names == names
        if names and tag:
            assert again.variant == variant


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (XCiTArchitecture(4, 32, 1, 2, num_classes=3), "patches of 8 or 16 pixels"),
        (XCiTArchitecture(8, 32, 1, 2, stem_strides=(2, 2, 2, 1)), "patches of 8 or 16"),
        (XCiTArchitecture(8, 32, 1, 2, attention_scale=0.3), "attention's usual scale"),
        (RegNetArchitecture(16, 16.0, 1.6, 8, 5, num_classes=3), "are written of regnety_160"),
    ],
)
def test_what_timm_cannot_build_is_refused(tmp_path, architecture, message):
    source = saved(tmp_path / "a.safetensors", architecture)
    with pytest.raises(XciteError, match=message):
        convert(source, tmp_path / "hub", to="timm-hub")
    assert not (tmp_path / "hub").exists()


def test_the_command_writes_names_and_replaces_its_own_alone(tmp_path, capsys):
    source, names = saved(tmp_path / "a.safetensors", OWN), tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\n")

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(["convert", str(source), *map(str, arguments)])
        return ended.value.code, *capsys.readouterr()

    hub = tmp_path / "hub"
    code, said, errors = run(hub, "--to", "timm-hub")
    assert not code, errors
    assert "the 3 classes have no names; --classes names them" in said
    assert "does not say how its pictures are prepared" in said
    assert f'timm.create_model("local-dir:{hub}", pretrained=True)' in said
    (hub / "README.md").write_text("mine")
    code, said, errors = run(hub, "--to", "timm-hub", "--classes", names)
    assert not code, errors
    assert "no names" not in said
    assert open_weights(hub).metadata.class_names == ["ant", "bee", "cat"]
    assert (hub / "README.md").read_text() == "mine"
    code, _, errors = run(tmp_path, "--to", "timm-hub")
    assert code == 2
    assert errors.count("\n") == 1
    code, _, errors = run(tmp_path / "a.pth", "--to", "official", "--classes", names)
    assert code == 2
    assert "official files name no classes" in errors
    assert not run(tmp_path / "b.safetensors", "--to", "xcite", "--classes", names)[0]
    assert open_weights(tmp_path / "b.safetensors").metadata.class_names == ["ant", "bee", "cat"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    code, _, errors = run(other, "--to", "timm-hub")
    assert code == 2
    assert "is not a folder of timm's form" in errors
    assert [p.name for p in other.iterdir()] == ["thesis.tex"]


def test_an_oblong_input_of_a_configuration_is_taken(tmp_path):
    source = saved(tmp_path / "a.safetensors", OWN, preprocessing=Preprocessing(size=32))
    convert(source, tmp_path / "hub", to="timm-hub")
    path = tmp_path / "hub" / "config.json"
    config = json.loads(path.read_text())
    config["pretrained_cfg"]["input_size"] = [3, 96, 64]
    path.write_text(json.dumps(config))
    assert open_weights(tmp_path / "hub").metadata.preprocessing == Preprocessing(size=(96, 64))
