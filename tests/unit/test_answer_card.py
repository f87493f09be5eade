"""A cache that is given away: its card, its checksums, and what `xcite inspect` says of it."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_teacher_cache import cached, place, recipe_of, teacher_of

from xcite.cli import main
from xcite.data.pipeline import TrainLoader
from xcite.errors import XciteError
from xcite.training.teachers import card, checksums
from xcite.training.teachers.computing import compute
from xcite.weights import catalog, open_weights, save_weights
from xcite.weights.safetensors_files import read_safetensors

__all__ = ["place"]  # the fixture

SOFT = ["distill.loss=soft", "distill.tau=2.0", "distill.top=2"]


def make(place: Path, folder: Path, views: int, *settings: str) -> Path:
    recipe = recipe_of(place, *settings)
    prepared, teacher = teacher_of(recipe)
    compute(recipe, prepared.train, prepared.class_names, teacher, folder, views=views)
    return folder


@pytest.fixture(scope="module")
def soft(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(place, tmp_path_factory.mktemp("soft") / "answers", 2, *SOFT)


def copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def test_the_card_says_what_was_computed(place: Path, soft: Path) -> None:
    found, text = card.facts(soft), (soft / "README.md").read_text(encoding="utf-8")
    assert text == card.markdown(found)
    assert (found.loss, found.views, found.answers, found.pictures) == ("soft", [0, 1], 24, 26)
    assert found.bits == 2 * (16 + 16) + 16  # of each class its number and probability, the rest
    assert found.class_names == ["disc", "noise", "stripes"]
    said = (
        "teacher.safetensors", found.teacher.sha256, "| Teacher's licence | not stated |",
        "| Seed | 0 |", "distill.tau | 2.0", "disc, noise, stripes",
        found.depends["data.train"], "| Views | 2 (24 answers a view) |",
    )  # fmt: skip
    for words in said:
        assert words in text, words
    assert str(place) not in text + (soft / "manifest.json").read_text(encoding="utf-8")
    for path in soft.glob("*.safetensors"):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert f"| {path.name} | {path.stat().st_size:,} | {digest} |" in text


def test_what_storing_lost_is_measured(place: Path, soft: Path, tmp_path: Path) -> None:
    found = card.facts(soft)
    views = [load_file(soft / f"view-0000{view}.safetensors") for view in (0, 1)]
    rest = np.concatenate([view["rest"] for view in views]).astype(np.float64)
    assert found.outside_mean == pytest.approx(rest.mean(), rel=1e-4)
    assert found.outside_largest == pytest.approx(rest.max(), rel=1e-4)
    # two of three classes and the rest are all there is: rounding alone is lost
    assert found.divergence is not None
    assert abs(found.divergence) < 1e-5
    lossy = card.facts(make(place, tmp_path / "one", 1, *SOFT[:2], "distill.top=1"))
    assert lossy.divergence is not None
    assert lossy.divergence > 1e-3
    # The divergence, from the answers themselves.
    recipe = recipe_of(place, *SOFT[:2], "distill.top=1", "distill.views=1")
    table = cached(place, tmp_path / "one", *SOFT[:2], "distill.top=1", "distill.views=1")
    prepared, live = teacher_of(recipe)
    loader, lost = TrainLoader(prepared.train, recipe), []
    for batch in loader.epoch(0):
        given, kept = (log_softmax(a / 2.0) for a in (live.answers(batch), table.answers(batch)))
        lost += (np.exp(given) * (given - kept)).sum(1).tolist()
    loader.close()
    assert lossy.divergence == pytest.approx(np.mean(lost), rel=1e-4)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_the_cards_own_lines_read_a_view(soft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (soft / "README.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    monkeypatch.chdir(soft)
    exec(text.partition("```python\n")[2].partition("```")[0], names)
    np.testing.assert_array_equal(
        names["answers"], load_file(soft / "view-00000.safetensors")["top_classes"]
    )
    assert len(names["keys"]) == 24  # type: ignore[arg-type]


def test_sha256sum_and_verify_name_a_damaged_file(
    place: Path, soft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(soft, tmp_path / "elsewhere")
    command = ["teach", place / "tiny.yaml", "--out", folder, "--verify", "8"]
    command += [word for setting in SOFT for word in ("--set", setting)]
    assert run(*command) == 0
    assert "3 files are as checksums.sha256 lists them" in capsys.readouterr().out
    tool = shutil.which("sha256sum")
    if tool:
        subprocess.run([tool, "-c", "--strict", "checksums.sha256"], cwd=folder, check=True)
    view = folder / "view-00001.safetensors"
    content = bytearray(view.read_bytes())
    content[-1] ^= 1
    view.write_bytes(content)
    assert run(*command) == 2
    assert "view-00001.safetensors (damaged)" in capsys.readouterr().err
    view.unlink()
    with pytest.raises(XciteError, match=r"view-00001\.safetensors \(missing\)"):
        checksums.check_files(folder)
    # The remedy works: the view is computed anew, card and list follow.
    make(place, folder, 2, *SOFT)
    assert checksums.check_files(folder) == 3
    shutil.copy(view, folder / "view-00002.safetensors")
    with pytest.raises(XciteError, match=r"view-00002\.safetensors \(not listed\)"):
        checksums.check_files(folder)


def test_more_views_are_added_to_card_and_checksums(place: Path, tmp_path: Path) -> None:
    folder = make(place, tmp_path / "answers", 1)
    first = (folder / "checksums.sha256").read_text(encoding="utf-8")
    assert "| Views | 1 " in (folder / "README.md").read_text(encoding="utf-8")
    copied = copy(folder, tmp_path / "copied")  # appending works in a copy, too
    make(place, copied, 3)
    text = (copied / "README.md").read_text(encoding="utf-8")
    assert "| Views | 3 (24 answers a view) |" in text
    assert "view-00002.safetensors" in text
    assert "| Bits per answer | 16, and 1 of presence" in text
    assert "Outside the kept classes" not in text
    assert set(first.splitlines()) < set(checksums_of(copied))
    assert checksums.check_files(copied) == 4
    table = cached(place, copied, "optim.epochs=3")
    assert table.views == 3


def checksums_of(folder: Path) -> list[str]:
    return (folder / "checksums.sha256").read_text(encoding="utf-8").splitlines()


def test_a_cache_of_an_earlier_version_gets_its_card(place: Path, tmp_path: Path) -> None:
    folder = make(place, tmp_path / "answers", 1)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for key in ("pictures", "class_names", "licence"):
        del manifest[key]
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (folder / "checksums.sha256").unlink()
    (folder / "README.md").unlink()
    assert checksums.check_files(folder) == 0
    found = card.facts(folder)
    assert found.pictures is None
    assert "not recorded, fingerprint" in card.markdown(found)
    assert card.markdown(found).count("not listed") == 2
    make(place, folder, 1)
    assert card.facts(folder).pictures == 26
    assert checksums.check_files(folder) == 2


def test_inspect_tells_the_facts(
    soft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", soft) == 0
    said = capsys.readouterr().out
    for words in (
        "a teacher cache",
        "teacher.safetensors",
        "2 (24 answers a view)",
        "augment.mixup",
    ):
        assert words in said
    assert run("inspect", soft, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["views"] == [0, 1]
    assert told["bits"] == 80
    assert told["divergence"] == card.facts(soft).divergence
    assert told["files"][1]["sha256"] == checksums.read_checksums(soft)["view-00000.safetensors"]
    assert run("inspect", soft, "--card", "--out", tmp_path / "card.md") == 0
    assert (tmp_path / "card.md").read_text("utf-8").strip() == (
        (soft / "README.md").read_text("utf-8").strip()
    )


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        (f"{'0' * 64}  ../secret", "line 1 names no file of a teacher cache"),
        ("nothing", "line 1 names no file of a teacher cache"),
        (f"{'0' * 64}  manifest.json", r"manifest\.json \(damaged\)"),
    ],
)
def test_a_list_that_leads_elsewhere_is_refused(
    soft: Path, tmp_path: Path, line: str, wrong: str
) -> None:
    folder = copy(soft, tmp_path / "cache")
    (folder / "checksums.sha256").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(XciteError, match=wrong):
        checksums.check_files(folder)


def test_a_strangers_manifest_cannot_act_or_break(
    soft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(soft, tmp_path / "cache")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["teacher"]["name"] = "a|b\x1b[31m\n# not a title <script>"
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    text = card.markdown(card.facts(folder))
    assert "\x1b" not in text
    assert not re.search("^# not", text, re.MULTILINE)
    assert r"a\|b" in text
    assert run("inspect", folder) == 0
    assert "\x1b" not in capsys.readouterr().out
    for key, value in (("classes", "many"), ("teacher", {"name": 1}), ("class_names", 5)):
        (folder / "manifest.json").write_text(json.dumps(manifest | {key: value}), encoding="utf-8")
        with pytest.raises(XciteError, match="does not say what a teacher cache says"):
            card.facts(folder)


def test_a_licence_is_told_where_it_is_known(place: Path, tmp_path: Path) -> None:
    assert catalog.licence("regnety_160") == "Apache-2.0"
    assert catalog.licence(str(place / "teacher.safetensors")) is None
    # The published name alone is not enough where the hash is known.
    (tmp_path / "regnety_160-a5fe301d.pth").write_bytes(b"another")
    assert catalog.licence(str(tmp_path / "regnety_160-a5fe301d.pth")) is None
    weights = open_weights(place / "teacher.safetensors")
    weights.metadata.provenance["licence"] = "CC0-1.0"
    save_weights(tmp_path / "own.safetensors", weights.tensors, weights.metadata)
    assert card.licence_of(str(tmp_path / "own.safetensors")) == "CC0-1.0"
    folder = make(place, tmp_path / "c", 1, f"distill.teacher={tmp_path / 'own.safetensors'}")
    assert "| Teacher's licence | CC0-1.0 |" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_manifest_of_others_is_none_of_ours(
    place: Path, soft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert card.is_cache(soft)
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    shutil.copy(place / "teacher.safetensors", tmp_path / "model.safetensors")
    assert not card.is_cache(tmp_path)
    assert run("inspect", tmp_path) == 0
    assert "regnet" in capsys.readouterr().out.lower()


def test_a_views_metadata_stay_readable(soft: Path) -> None:
    _, said = read_safetensors(soft / "view-00000.safetensors")
    assert {"outside_mean", "outside_largest", "divergence"} < said.keys()
