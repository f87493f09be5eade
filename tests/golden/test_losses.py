"""Loss values and gradients of both engines against the official code and PASSL's."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from xcite.engines import installed
from xcite.errors import XciteError
from xcite.recipe_sections import QUESTIONS, DistillRecipe

# Made by running the official losses.py and PASSL's DistillationWrapper in float64.
GOLDEN = json.loads(
    (Path(__file__).parents[1] / "fixtures/goldens/losses.json").read_text(encoding="utf-8")
)["losses"]
LABELS = [1, 2, 3, 4]


def stream(number):
    """(4, 1000): the reference's inputs are three times a seeded normal array."""
    rng = np.random.default_rng([0, number])
    return 3 * rng.standard_normal((4, 1000)).astype(np.float32)


def mixup_targets():
    targets = np.zeros((4, 1000), np.float32)
    for share, labels in ((0.7, LABELS), (0.3, LABELS[::-1])):
        hot = np.full((4, 1000), 1e-4)
        hot[range(4), labels] = 0.9001
        targets += (share * hot).astype(np.float32)
    return targets


def label_smoothing():
    targets = np.full((4, 1000), 1e-4, np.float32)
    targets[range(4), LABELS] += 0.9
    return targets


def value_and_gradient(engine, logits, targets, teacher, distill):
    losses = importlib.import_module(f"xcite.engines.{engine}.losses")
    framework = importlib.import_module(engine)
    tensor = framework.to_tensor if engine == "paddle" else framework.tensor
    logits = tensor(logits)
    logits.stop_gradient = False
    if engine == "torch":
        logits.requires_grad_(True)
    answers = None if teacher is None else tensor(teacher)
    value = losses.loss(logits, tensor(targets), answers, distill)
    value.backward()
    return value.item(), np.asarray(logits.grad)


MIX, SMOOTH = mixup_targets(), label_smoothing()
CASES = {
    "soft_target_ce__mixup_targets": (MIX, DistillRecipe()),
    "label_smoothing_0.1": (SMOOTH, DistillRecipe()),
    "passl_head_only": (MIX, DistillRecipe(loss="dml", alpha=0.0)),
    "passl_dml_only": (MIX, DistillRecipe(loss="dml", alpha=1.0)),
    "passl_distillation_total": (MIX, DistillRecipe(loss="dml")),
}
for _name, _targets in (("mixup", MIX), ("smooth", SMOOTH)):
    _key = f"official_distillation__{_name}_{{}}__same_outputs"
    CASES[_key.format("none")] = (_targets, DistillRecipe())
    CASES[_key.format("soft_tau1")] = (_targets, DistillRecipe(loss="soft"))
    CASES[_key.format("soft_tau3")] = (_targets, DistillRecipe(loss="soft", tau=3.0))
    CASES[_key.format("hard")] = (_targets, DistillRecipe(loss="hard"))


@pytest.mark.parametrize("engine", installed())
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(engine, name):
    targets, distill = CASES[name]
    value, gradient = value_and_gradient(engine, stream(11), targets, stream(13), distill)
    # float32 against the reference's float64
    assert value == pytest.approx(GOLDEN[name]["value"], rel=2e-6)
    norm, element = GOLDEN[name]["grad_student"]
    assert np.linalg.norm(gradient) == pytest.approx(norm, rel=5e-6)
    assert gradient[0, 1] == pytest.approx(element, rel=2e-5, abs=1e-8)


@pytest.mark.parametrize("engine", installed())
@pytest.mark.parametrize(
    ("name", "distill"),
    [
        ("soft_tau1", DistillRecipe(loss="soft", alpha=1.0)),
        ("soft_tau3", DistillRecipe(loss="soft", alpha=1.0, tau=3.0)),
        ("hard", DistillRecipe(loss="hard", alpha=1.0)),
    ],
)
def test_distillation_alone(engine, name, distill):
    """With alpha 1 only the distillation part is left, which the reference feeds `student_kd`."""
    golden = GOLDEN[f"official_distillation__mixup_{name}_alpha1"]
    value, gradient = value_and_gradient(engine, stream(12), MIX, stream(13), distill)
    assert value == pytest.approx(golden["value"], rel=5e-6)
    assert np.linalg.norm(gradient) == pytest.approx(golden["grad_student_kd"][0], rel=5e-6)
    assert gradient[0, 1] == pytest.approx(golden["grad_student_kd"][1], rel=2e-5, abs=1e-9)


@pytest.mark.parametrize("engine", installed())
def test_classes_are_as_good_as_logits_for_the_hard_loss(engine):
    distill = DistillRecipe(loss="hard")
    live = value_and_gradient(engine, stream(11), MIX, stream(13), distill)
    cached = value_and_gradient(engine, stream(11), MIX, stream(13).argmax(-1), distill)
    assert live[0] == cached[0]
    np.testing.assert_array_equal(live[1], cached[1])


@pytest.mark.parametrize("engine", installed())
def test_missing_teacher_is_an_error(engine):
    with pytest.raises(XciteError, match="teacher"):
        value_and_gradient(engine, stream(11), MIX, None, DistillRecipe(loss="soft"))


@pytest.mark.parametrize("engine", installed())
def test_every_loss_of_the_recipe_is_computed_and_no_other(engine):
    def value(loss):
        distill = DistillRecipe.model_construct(loss=loss)
        return value_and_gradient(engine, stream(11), MIX, stream(13), distill)[0]

    assert len({value(loss) for loss in ("none", *QUESTIONS)}) == 1 + len(QUESTIONS)
    with pytest.raises(XciteError, match="'new' is not computed"):
        value("new")
