"""`xcite draw` and `xcite report` on a real, tiny run and a real bundle."""

import re

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from serving import ARCHITECTURE, CLASS_NAMES, PREPROCESSING, make_bundle, photograph
from typer.testing import CliRunner

from xcite.canonical import initial_weights
from xcite.commands import draw, report
from xcite.errors import XciteError
from xcite.figures import attention as figures
from xcite.weights import Metadata, save_weights

TINY_RUN = """
model: {name: xcit_nano_12_p8, patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}
data: {validation: digits, workers: 0}
preprocessing: {size: 16, mean: [0.305], std: [0.376]}
augment: {crop: none, flip: 0.0, randaugment: null, erasing: 0.0, mixup: 0.0, cutmix: 0.0}
optim: {epochs: 2, batch: 128, lr: 5.0e-3, lr_per: null, warmup_epochs: 0.0}
run: {engine: torch}
"""


def _run(app, *arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def _draw(weights, picture, *options):
    # PyTorch imports faster than the default engine.
    return _run(draw.app, "attention", weights, picture, "--engine", "torch", *options)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("draw") / "weights.safetensors"
    tensors = initial_weights(ARCHITECTURE, seed=3)
    for name in ("head.weight", *(f"cls_attn_blocks.{i}.attn.qkv.weight" for i in range(2))):
        tensors[name] = 40 * tensors[name]
    described = Metadata(
        architecture=ARCHITECTURE, class_names=CLASS_NAMES, preprocessing=PREPROCESSING
    )
    save_weights(path, tensors, described)
    return path


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "blobs.png"
    path.write_bytes(photograph(0, width=150, height=100))
    return path


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    from xcite import recipe
    from xcite.training.loop import train

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(recipe.parse(TINY_RUN, "test"), folder)
    return folder


def test_attention_of_weights(weights, picture, tmp_path):
    said = _draw(weights, picture, "--out", tmp_path / "a.png")
    assert "%" in said
    for name in ("a.png", "a-channels.png"):
        with Image.open(tmp_path / name) as drawn:
            assert len(np.unique(np.asarray(drawn.convert("L")))) > 50
    with np.load(tmp_path / "a.npz") as saved:
        arrays = dict(saved)
    assert arrays["picture"].shape == (32, 32, 3)
    assert arrays["class_attention"].shape == (2, 2, 4, 4)
    # softmax over CLS and the patches: float32 sums to 1
    total = arrays["class_attention"].sum(axis=(2, 3)) + arrays["cls_to_itself"]
    np.testing.assert_allclose(total, 1, atol=1e-5)
    np.testing.assert_allclose(
        arrays["class_attention_mean"], arrays["class_attention"].mean(axis=1), rtol=1e-6
    )
    for block in range(ARCHITECTURE.depth):
        channels = arrays[f"channels_{block}"]
        assert channels.shape == (2, 8, 8)
        np.testing.assert_allclose(channels.sum(axis=-1), 1, atol=1e-5)
    assert arrays["occlusion"].shape == (32, 32)
    assert str(arrays["label"]) == CLASS_NAMES[arrays["probabilities"].argmax()]


def test_any_resolution_without_losing_the_edges(weights, picture, tmp_path):
    out = tmp_path / "w.png"
    _run(
        draw.app,
        "attention",
        weights,
        picture,
        "--engine",
        "torch",
        "--out",
        out,
        "--whole",
        "--size",
        "64",
    )
    with np.load(tmp_path / "w.npz") as saved:
        assert saved["picture"].shape == (64, 96, 3)  # 100 x 150, in its proportions
        assert saved["class_attention"].shape == (2, 2, 8, 12)
        shown = saved["picture"]
    # both ends of the picture are still there: nothing was cropped
    whole = np.asarray(Image.open(picture).resize((96, 64), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(shown, whole)


def test_a_bundle_gives_the_same_class_attention_and_says_what_is_missing(
    weights, picture, tmp_path
):
    pytest.importorskip("openvino")
    bundle = make_bundle(tmp_path / "bundle")
    said = _run(draw.app, "attention", bundle, picture, "--out", tmp_path / "b.png")
    assert "class attention only" in said
    assert not (tmp_path / "b-channels.png").exists()
    _draw(weights, picture, "--out", tmp_path / "a.png")
    with np.load(tmp_path / "a.npz") as of_weights, np.load(tmp_path / "b.npz") as of_bundle:
        np.testing.assert_allclose(
            of_bundle["class_attention"], of_weights["class_attention"], atol=1e-4
        )
        np.testing.assert_allclose(of_bundle["occlusion"], of_weights["occlusion"], atol=1e-4)
    with pytest.raises(XciteError, match="only 32 x 32"):
        _run(draw.app, "attention", bundle, picture, "--whole")


def test_unreadable_sources_are_one_line(picture, tmp_path):
    with pytest.raises(XciteError, match="nothing-here"):
        _run(draw.app, "attention", tmp_path / "nothing-here", picture)


def test_occlusion_finds_what_counts():
    """A 'model' that only adds up one corner loses exactly where that corner is hidden."""
    image = np.ones((3, 24, 32), np.float32)

    def corner(images):
        return images[:, :, :8, :8].mean(axis=(1, 2, 3))

    hidden = figures.occlusion_map(corner, image, side=8, batch=5)
    assert hidden.shape == (24, 32)
    # squares at 0 and 4 in both directions touch the corner: drops 1, 1/2, 1/2 and 1/4
    assert hidden[0, 0] == pytest.approx(1)
    assert hidden[5, 5] == pytest.approx((1 + 0.5 + 0.5 + 0.25) / 4)
    assert np.all(hidden[12:, :] == 0)
    assert np.all(hidden[:, 12:] == 0)


def test_occlusion_covers_a_picture_smaller_than_the_square():
    hidden = figures.occlusion_map(lambda x: x.mean(axis=(1, 2, 3)), np.ones((1, 5, 7)), side=9)
    np.testing.assert_allclose(hidden, 1)


def test_curves_of_several_runs(run_folder, tmp_path):
    out = tmp_path / "curves.png"
    said = _run(draw.app, "curves", run_folder, run_folder, "--out", out)
    assert str(out) in said
    with Image.open(out) as drawn:
        assert drawn.width > 600
    with pytest.raises(XciteError, match="not a run folder"):
        _run(draw.app, "curves", tmp_path, "--out", out)


def test_report_is_one_page_with_everything(run_folder, tmp_path):
    out = tmp_path / "report.html"
    _run(report.app, run_folder, "--out", out, "--pictures", "3")
    page = out.read_text(encoding="utf-8")
    for heading in ("Curves", "Accuracy", "Most certain and right", "Furthest off", "Cost"):
        assert f"<h2>{heading}</h2>" in page
    assert "embed_dim: 16" in page
    assert "359 pictures of digits" in page
    assert "torch" in page
    # curves, confusion, and two pictures for each of three best and three worst
    assert page.count("data:image/png;base64,") == 2 + 2 * 6
    # nothing is fetched from anywhere
    outside = [a for a in re.findall(r"(?:src|href)='([^']*)'", page) if a[:5] != "data:"]
    assert outside == []
    assert "http://" not in page
    assert "<script" not in page


def test_report_of_an_unfinished_run_says_what_is_missing(run_folder, tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "recipe.yaml").write_bytes((run_folder / "recipe.yaml").read_bytes())
    _run(report.app, begun)
    page = (begun / "report.html").read_text(encoding="utf-8")
    assert "not saved any weights yet" in page
    assert "Nothing was recorded yet" in page


def test_report_escapes_what_it_shows(run_folder, tmp_path):
    out = tmp_path / "<img src=x>.html"
    strange = tmp_path / "<b>run"
    strange.mkdir()
    for name in ("recipe.yaml", "metrics.jsonl"):
        (strange / name).write_bytes((run_folder / name).read_bytes())
    _run(report.app, strange, "--out", out)
    page = out.read_text(encoding="utf-8")
    assert "<b>run" not in page
    assert "&lt;b&gt;run" in page


NAMES = [
    "猫",
    "いぬ",
    "고양이",
    "$a_b$",
    "<img src=x onerror=alert(1)>",
    "_hidden & co",
    "长名" * 40,
]


@pytest.fixture(scope="module")
def chinese_run(tmp_path_factory):
    """A run whose pictures, classes and folder have names that mean something elsewhere."""
    from xcite import recipe
    from xcite.training.loop import train

    folder = tmp_path_factory.mktemp("chinese")
    random = np.random.default_rng(0)
    for name in NAMES:
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / name / f"图 {number} & <b>.png")
    chosen = recipe.parse(TINY_RUN, "test").model_dump()
    chosen["data"] |= {"train": str(folder / "pictures"), "validation": str(folder / "pictures")}
    chosen["preprocessing"] |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    chosen["optim"] |= {"batch": 14}
    run = folder / "运行 $x_1$ <b>"
    train(recipe.Recipe.model_validate(chosen), run)
    return run


@pytest.mark.parametrize("language", ["en", "zh"])
def test_report_of_names_in_every_script(chinese_run, tmp_path, monkeypatch, capfd, language):
    monkeypatch.setenv("XCITE_LANG", language)
    out = tmp_path / "report.html"
    _run(report.app, chinese_run, "--out", out, "--pictures", "9")
    assert capfd.readouterr().err == ""
    page = out.read_text(encoding="utf-8")
    assert f"<html lang='{language}'>" in page
    headings = {"en": ("Curves", "Accuracy", "Cost"), "zh": ("曲线", "准确率", "开销")}[language]
    for heading in headings:
        assert f"<h2>{heading}</h2>" in page
    assert "<img src=x" not in page
    assert "<b>.png" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    for name in ("猫", "いぬ", "고양이", "$a_b$", "_hidden &amp; co", "长名" * 40):
        assert name in page


def test_status_in_chinese(chinese_run, monkeypatch, capsys):
    from xcite.commands import status

    monkeypatch.setenv("XCITE_LANG", "zh")
    said = _run(status.app, chinese_run)
    assert "\n状态         已完成\n" in said
    assert "\n位置         第 2 轮（共 2 轮），第 2 步（共 2 步），全程的 100.0 %\n" in said
    assert str(chinese_run) in said.splitlines()[0]


def test_a_chinese_run_is_read_alike_in_english(chinese_run, tmp_path, monkeypatch):
    """What files hold for programs does not depend on the language."""
    import json

    from xcite import recipe
    from xcite.training.loop import train

    monkeypatch.setenv("XCITE_LANG", "zh")
    again = tmp_path / "again"
    train(recipe.load(str(chinese_run / "recipe.yaml")), again)
    log = (again / "log.txt").read_text(encoding="utf-8")
    assert "在 torch 上开始：第 1 轮，共 2 轮，每轮 2 步" in log
    assert "Validate Epoch [2] acc1 (" in log  # the form that scripts look for

    def rows(run):
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        timed = ("seconds", "pictures_per_second")
        return [{k: v for k, v in json.loads(x).items() if k not in timed} for x in lines]

    assert rows(again) == rows(chinese_run)
    assert json.loads((again / "status.json").read_text())["state"] == "finished"


def test_report_of_many_classes_lists_the_pairs(monkeypatch):
    from xcite.evaluation.accuracy import Counter
    from xcite.figures import report as page

    counter = Counter([f"<c{i}>" for i in range(60)])
    counter.add(np.roll(np.eye(60), 1, axis=1), np.arange(60))
    found = page._Findings(data="x", accuracy=counter.result(), best=[], worst=[], skipped=[])
    said = page._confusion(found, "x", None)
    assert "The most confused pairs" in said
    assert "<td>&lt;c0&gt;</td><td>&lt;c1&gt;</td>" in said
    assert "<img" not in said
