"""`xcite.alignment`: equal sides agree, a moved tensor is found and its layer named."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xcite import recipe as recipes
from xcite.alignment import comparison, measuring
from xcite.alignment.comparison import compare
from xcite.alignment.dump import compare_with_dump, write_dump
from xcite.alignment.measuring import Measured, Side, measure
from xcite.alignment.trial import Trial, prepare
from xcite.cli import main
from xcite.engines import installed
from xcite.errors import XciteError
from xcite.recipe_sections import QUESTIONS

TINY = """
model: {name: xcit_nano_12_p8, patch_size: 2, embed_dim: 16, depth: 3, num_heads: 2, drop_path: 0.3}
preprocessing: {size: 16, mean: [0.5], std: [0.25]}
optim: {batch: 4, epochs: 1, warmup_epochs: 0, lr_per: null}
"""


def tiny_trial(steps: int = 2, settings: Sequence[str] = ()) -> Trial:
    recipe = recipes.parse(TINY, "tiny", settings)
    return prepare(recipe, steps, random=True, classes=5)[0]


@pytest.mark.skipif(len(installed()) < 2, reason="needs both engines")
@pytest.mark.parametrize("loss", ["none", *QUESTIONS])
def test_both_engines_are_aligned(loss: str) -> None:
    settings = [] if loss == "none" else [f"distill.loss={loss}", "distill.teacher=drawn"]
    settings += ["distill.space=features"] if loss == "cosine" else []
    given = tiny_trial(3, settings)
    paddle, torch = (measure(Side(engine), given) for engine in ("paddle", "torch"))
    report = compare("tiny", paddle, torch)
    assert report.within, report.first_diverging
    assert report.first_diverging is None
    kinds = {row.kind for row in report.rows}
    assert kinds == set(comparison.TOLERANCES)  # nothing was left out
    assert len(report.losses["paddle"]) == 3


@pytest.mark.parametrize("engine", installed())
@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("patch_embed.proj.0.0.weight", "patch_embed"),
        ("blocks.2.local_mp.bn.bias", "blocks.2"),
        ("cls_attn_blocks.1.gamma1", "cls_attn_blocks.1"),
    ],
)
def test_a_moved_weight_is_found_and_its_layer_named(engine: str, tensor: str, layer: str) -> None:
    given = tiny_trial(steps=1)
    moved = {**given.weights, tensor: given.weights[tensor] * np.float32(1.01) + 0.001}
    ours = measure(Side(engine), given)
    theirs = measure(Side(engine), replace(given, weights=moved))
    assert compare("tiny", ours, ours).within
    report = compare("tiny", ours, theirs)
    assert not report.within
    assert report.first_diverging == f"{layer} ({comparison.ACTIVATIONS})"


def test_a_wrong_gradient_or_statistic_alone_is_found() -> None:
    given = tiny_trial(steps=1)
    ours = measure(Side(installed()[0]), given)
    name = "blocks.1.mlp.fc1.weight"
    wrong = replace(ours, gradients={**ours.gradients, name: ours.gradients[name] * 1.01})
    assert compare("tiny", ours, wrong).first_diverging == "blocks.1 (gradients)"
    # Paddle's own biased variance would show as a factor (n - 1) / n.
    name = "blocks.0.local_mp.bn.running_var"
    count = 4 * 8 * 8
    biased = {**ours.statistics, name: ours.statistics[name] * (count - 1) / count}
    report = compare("tiny", ours, replace(ours, statistics=biased))
    assert report.first_diverging == "blocks.0 (running statistics)"


def test_values_that_are_not_finite_never_agree() -> None:
    side = Measured("a", activations={"head": np.array([[np.nan]], np.float32)})
    report = compare("tiny", side, side)
    assert not report.within
    assert report.to_json()["rows"][0]["relative"] is None


def test_moved_weights_make_every_tensor_its_own() -> None:
    weights = tiny_trial(steps=1).weights
    vectors = [v for n, v in weights.items() if v.shape == (16,) and n.startswith("blocks")]
    assert len({vector.tobytes() for vector in vectors}) == len(vectors) > 20


@pytest.mark.parametrize("engine", installed())
def test_a_dump_agrees_and_a_changed_one_does_not(engine: str, tmp_path: Path) -> None:
    given = tiny_trial(steps=1)
    write_dump(Side(installed()[0]), given, tmp_path)
    report = compare_with_dump(Side(engine), given, tmp_path, "tiny")
    assert report.within
    assert {row.kind for row in report.rows} == {
        comparison.ACTIVATIONS,
        comparison.ACTIVATIONS_TRAIN,
        comparison.LOSS,
        comparison.GRADIENTS,
    }
    activations = dict(np.load(tmp_path / "activations.npz"))
    for name in ("blocks.2", "norm", "head"):
        activations[name] = activations[name] + np.float32(0.01)
    np.savez(tmp_path / "activations.npz", **activations)
    report = compare_with_dump(Side(engine), given, tmp_path, "tiny")
    assert report.first_diverging == f"blocks.2 ({comparison.ACTIVATIONS})"


def test_a_dump_may_be_partial_but_not_wrong(tmp_path: Path) -> None:
    given, engine = tiny_trial(steps=1), installed()[-1]
    write_dump(Side(engine), given, tmp_path)
    (tmp_path / "activations_train.npz").unlink()
    head = np.load(tmp_path / "activations.npz")["head"]
    np.savez(tmp_path / "activations.npz", head=head)
    report = compare_with_dump(Side(engine), given, tmp_path, "tiny")
    assert report.within
    assert len(report.notes) == 2

    def refused(match: str) -> None:
        with pytest.raises(XciteError, match=match):
            compare_with_dump(Side(engine), given, tmp_path, "tiny")

    np.savez(tmp_path / "activations.npz", head=head, backbone=head)
    refused("holds backbone, which the model does not have")
    np.savez(tmp_path / "activations.npz", head=np.array([{}], dtype=object))
    refused(r"activations\.npz cannot be read")
    (tmp_path / "activations.npz").write_bytes(b"PK\x03\x04 damaged")
    refused(r"activations\.npz cannot be read")
    np.savez(tmp_path / "inputs.npz", images=np.zeros((1, 1, 16, 16)), labels=np.array([99]))
    refused("class numbers below 5")
    (tmp_path / "inputs.npz").unlink()
    refused(r"there is no .*inputs\.npz")


def test_the_command_tells_by_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY)
    common = ["align", str(recipe), "--data", "random", "--classes", "5", "--batch", "4"]
    engine = ["--engine", installed()[0]]

    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main([*common, *arguments])
        return int(ended.value.code or 0)

    dump, out = tmp_path / "dump", tmp_path / "out"
    assert run("--dump", str(dump), *engine) == 0
    assert run("--reference", str(dump), "--out", str(out), *engine) == 0
    assert "aligned: all within tolerance" in capsys.readouterr().out
    assert (out / "alignment.png").read_bytes().startswith(b"\x89PNG")
    gradients = dict(np.load(dump / "gradients.npz"))
    gradients["head.weight"] = gradients["head.weight"] + np.float32(1)
    np.savez(dump / "gradients.npz", **gradients)
    assert run("--reference", str(dump), "--out", str(out), *engine) == 1
    assert "first apart in head (gradients)" in capsys.readouterr().out
    assert '"within": false' in (out / "alignment.json").read_text()
    assert run("--data", "pictures") == 2
    assert run("--sides", "torch,jax") == 2
    assert "unknown engine 'jax'" in capsys.readouterr().err
    assert run("--sides", "torch,torch") == 2
    assert "name two that differ" in capsys.readouterr().err
    assert run("--sides", "torch,paddle", *engine, "--dump", str(dump)) == 2


def test_a_side_is_named_as_it_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, object]] = []

    class Engine:
        def load_weights(self, weights: object) -> None: ...

    def create(name: str, architecture: object, **options: object) -> Engine:
        made.append((name, options["operators"]))
        return Engine()

    monkeypatch.setattr(measuring, "create_engine", create)
    for name in ("torch", "paddle:plain", "torch:fast"):
        side = Side.parse(name)
        assert side.name == name
        side.create(tiny_trial(steps=1))
    Side.parse("torch").create(tiny_trial(1, ["run.operators=plain"]))
    assert made == [("torch", "fast"), ("paddle", "plain"), ("torch", "fast"), ("torch", "plain")]
    for wrong in ("", "jax", "torch:", "torch:slow", "torch plain"):
        with pytest.raises(XciteError, match="choose"):
            Side.parse(wrong)
