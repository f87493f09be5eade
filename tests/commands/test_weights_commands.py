"""`xcite convert`, `xcite inspect` and `xcite weights`, as a user calls them."""

import json
import subprocess
import sys

import pytest

from xcite.canonical import initial_weights, parameter_count
from xcite.cli import main
from xcite.engines import installed
from xcite.preprocessing import Preprocessing
from xcite.variants import XCiTArchitecture
from xcite.weights import Metadata, open_weights, save_weights

SMALL = XCiTArchitecture(
    8, embed_dim=16, depth=1, num_heads=2, num_classes=3, tokens_norm=False, eta=0.5
)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "small.safetensors"
    metadata = Metadata(
        architecture=SMALL,
        class_names=["cat", "dog", "a|b <i> $x_1$ &lt; _y_ ~z~ 猫"],
        preprocessing=Preprocessing(size=32),
        provenance={"source": "drawn here"},
        metrics={"top1": 12.5},
    )
    save_weights(path, initial_weights(SMALL), metadata)
    return path


def run(*arguments):
    """Call the command; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    return ended.value.code


@pytest.mark.parametrize("engine", installed())
def test_convert_there_and_back(source, tmp_path, capsys, engine):
    there, back = tmp_path / "there.pdparams", tmp_path / "back.safetensors"
    assert not run("convert", source, there, "--to", "passl", "--check", "--engine", engine)
    said = capsys.readouterr().out
    assert "xcite to passl" in said
    assert "equal in every bit" in said
    assert f"logits on {engine}: equal" in said
    assert not run("convert", there, back, "--to", "xcite", "--no-tokens-norm")
    opened = open_weights(back)
    assert opened.architecture.tokens_norm is False
    assert opened.metadata.provenance["dialect"] == "passl"
    assert len(opened.metadata.provenance["sha256"]) == 64


def test_convert_extracts_the_average(source, tmp_path, capsys):
    from xcite.weights.safetensors_files import write_safetensors

    weights = initial_weights(SMALL)
    state = {f"weights/{n}": a for n, a in weights.items()}
    write_safetensors(
        tmp_path / "c.safetensors", {**state, **{f"ema/{n}": a * 2 for n, a in weights.items()}}
    )
    target = tmp_path / "ema.pth"
    arguments = ("convert", tmp_path / "c.safetensors", target, "--to", "official")
    assert not run(*arguments, "--extract", "ema")
    taken = open_weights(target).tensors["norm.weight"]
    assert (taken == 2 * weights["norm.weight"]).all()
    assert run(*arguments, "--extract", "teacher") == 2
    assert "has no part 'teacher'; it holds weights, ema" in capsys.readouterr().err


def test_a_failed_conversion_leaves_nothing(source, tmp_path, capsys):
    assert run("convert", source, tmp_path / "x.pth", "--to", "passl") == 2
    assert run("convert", tmp_path / "no.pth", tmp_path / "x.pth", "--to", "official") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert not (tmp_path / "x.pth").exists()


def test_inspect_tells_what_is_inside(source, capsys):
    assert not run("inspect", source)
    said = capsys.readouterr().out
    for words in ("xcite", "tokens_norm=False", "32 pixels", "cat, dog", "float32", "sha256"):
        assert words in said
    assert not run("inspect", source, "--json")
    report = json.loads(capsys.readouterr().out)
    part = report["parts"][0]
    assert part["classes"] == 3
    assert part["parameters"] == parameter_count(SMALL)
    assert part["architecture"]["eta"] == 0.5
    assert part["metadata"]["metrics"] == {"top1": 12.5}
    assert report["bytes"] == source.stat().st_size


def test_inspect_writes_a_card(source, tmp_path, capsys):
    card = tmp_path / "CARD.md"
    assert not run("inspect", source, "--card", "--out", card)
    text = card.read_text("utf-8")
    assert text.startswith("# small\n")
    assert "top1: 12.5" in text
    assert "source: drawn here" in text
    assert "a\\|b \\<i\\>" in text  # a stranger's text makes no table and no tag
    # ... and neither formula, entity, emphasis nor strike
    assert r"\$x_1\$ \&lt; \_y\_ \~z\~ 猫" in text
    assert "not recorded" in text


def test_inspect_names_what_is_wrong(tmp_path, capsys):
    from xcite.weights.safetensors_files import write_safetensors

    weights = initial_weights(SMALL)
    del weights["norm.bias"]
    write_safetensors(tmp_path / "broken.safetensors", weights)
    assert run("inspect", tmp_path / "broken.safetensors") == 2
    told = capsys.readouterr()
    assert "official" in told.out
    assert "missing: norm.bias" in told.err


def test_weights_lists_and_finds(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not run("weights", "--json")
    assert len(json.loads(capsys.readouterr().out)) == 50
    assert not run("weights", "nano_12_p8")
    said = capsys.readouterr().out
    assert "xcit_nano_12_p8_224_dist" in said
    assert "Apache-2.0" in said
    assert run("weights", "resnet") == 2
    monkeypatch.setenv("XCITE_MIRROR", "http://127.0.0.1:1")
    assert run("weights", "regnety_160", "--fetch") == 2
    assert "regnety_160-a5fe301d.pth" in capsys.readouterr().err


def test_reading_weights_imports_no_framework(source):
    program = (
        "import sys; from xcite.weights import open_weights; open_weights(sys.argv[1]);"
        "found = {'torch', 'paddle', 'pickle5'} & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", program, str(source)], check=True)
