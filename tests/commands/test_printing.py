"""What reaches a terminal: nothing that acts, on every encoding, quietly into a closed pipe."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from xcite.canonical import initial_weights
from xcite.variants import XCiTArchitecture
from xcite.weights import Metadata, save_weights

HOSTILE = ["a\x1b[31m", "two\nlines", "gpj.\u202eexe", "甲虫"]
ACTING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    small = XCiTArchitecture(16, 32, 1, 2, num_classes=len(HOSTILE))
    path = tmp_path_factory.mktemp("hostile") / "w\x1b[2J\n.safetensors"
    provenance = {"source\x9b": "\x1b]0;title\x07"}
    metadata = Metadata(architecture=small, class_names=HOSTILE, provenance=provenance)
    save_weights(path, initial_weights(small), metadata)
    return path


def xcite(*arguments, encoding="utf-8", shell=""):
    command = [sys.executable, "-m", "xcite.cli", *map(str, arguments)]
    if shell:
        command = ["bash", "-c", f'set -o pipefail; "$@" {shell}', "bash", *command]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=240)
    return done.returncode, done.stdout.decode(encoding), done.stderr.decode(encoding)


@pytest.mark.parametrize("form", [[], ["--json"], ["--card"]])
def test_inspect_shows_metadata_escaped(weights, form):
    code, output, errors = xcite("inspect", weights, *form)
    assert (code, errors) == (0, "")
    assert not ACTING.search(output)
    if form == ["--json"]:
        assert json.loads(output)["parts"][0]["metadata"]["class_names"] == HOSTILE
    elif not form:
        assert r"a\x1b[31m, two\nlines, gpj.\u202eexe" in output


def test_predict_names_pictures_and_classes_escaped(weights, tmp_path):
    picture = tmp_path / os.fsdecode(b"caf\xe9 [bold]\n.png")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(picture)
    missing = tmp_path / "no\x1b[31m.png"
    code, output, errors = xcite("predict", weights, picture, missing)
    assert code == 2
    assert output.splitlines()[0].endswith(r"caf\udce9 [bold]\n.png")
    assert len(output.splitlines()) == 1 + len(HOSTILE)
    assert not ACTING.search(output + errors)
    assert r"no\x1b[31m.png: no such file" in errors
    code, output, _ = xcite("predict", weights, picture, "--json", encoding="latin-1")
    assert code == 0
    assert {row["name"] for row in json.loads(output)[0]["classes"]} == set(HOSTILE)
    assert json.loads(output)[0]["picture"] == str(picture)


def test_a_latin_1_terminal_gets_replacements(weights, tmp_path):
    picture = tmp_path / "甲.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(picture)
    code, output, _ = xcite("predict", weights, picture, encoding="latin-1")
    assert code == 0
    assert r"\u7532.png" in output
    code, _, errors = xcite("predict", weights, tmp_path / "乙.png", encoding="latin-1")
    assert code == 2
    assert r"\u4e59.png" in errors


@pytest.mark.parametrize("command", [["models"], ["models", "--json"], ["--help"]])
def test_a_reader_that_goes_away_is_no_error(command):
    _, output, errors = xcite(*command, shell="| head -c 1")
    assert len(output) == 1
    assert errors == ""


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_errors_are_escaped(debug):
    code, _, errors = xcite(*debug, "inspect", "no\x1b[31m\nfile.safetensors")
    assert code == 2
    assert not ACTING.search(errors)
    assert errors.splitlines()[-1].startswith(r"xcite: ")
    assert r"no\x1b[31m\nfile" in errors.splitlines()[-1]
    assert len(errors.splitlines()) == 1 or debug
