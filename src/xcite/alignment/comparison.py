"""How far two sides are apart, layer group by layer group, against stated tolerances."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from xcite.alignment.measuring import Arrays, Measured
from xcite.errors import XciteError

ACTIVATIONS = "activations, evaluation"
ACTIVATIONS_TRAIN = "activations, training"
LOSS = "loss"
GRADIENTS = "gradients"
STEP = "one optimiser step"
STATISTICS = "running statistics"
CURVE = "loss curve"


@dataclass(frozen=True)
class Tolerance:
    """How far two sides may be apart, and why so far.

    Attributes:
        limit: the largest `Row.relative` that counts as equal.
    """

    limit: float
    reason: str


TOLERANCES = {
    ACTIVATIONS: Tolerance(
        2e-5, "float32 sums in another order; float32 alone is within 1e-5 of float64"
    ),
    ACTIVATIONS_TRAIN: Tolerance(
        2e-4, "dividing by the deviation of a small batch magnifies that rounding about tenfold"
    ),
    LOSS: Tolerance(2e-5, "a mean over the batch of logits in training mode"),
    GRADIENTS: Tolerance(
        1e-3, "the rounding of the forward pass, magnified again by BatchNorm's backward pass"
    ),
    STEP: Tolerance(
        1e-2,
        "in units of the learning rate, where the gradient is clear of its own rounding; float32 "
        "weights of magnitude 1 cannot hold a step of 5e-4 more exactly than 1e-4 of it",
    ),
    STATISTICS: Tolerance(2e-5, "means and unbiased variances of the first training forward pass"),
    CURVE: Tolerance(1e-3, "each step feeds its rounding to the next"),
}
# Adam's first step is the gradient's sign: where the gradient is rounding noise (the key bias of
# class attention has none at all), so is the step. Such values are left out of `STEP`.
CLEAR = 1e-2  # of the group's largest magnitude


@dataclass(frozen=True)
class Row:
    """One comparison: a layer group, a loss or a step.

    Attributes:
        absolute: largest absolute difference.
        relative: largest difference of a tensor over its largest magnitude on the second side (at
            least `CLEAR` of the group's); for `STEP` in units of the learning rate. Infinite where
            shapes differ or values are not finite.
    """

    kind: str
    group: str
    absolute: float
    relative: float
    within: bool


@dataclass(frozen=True)
class Report:
    """What `xcite align` found.

    Attributes:
        sides: what was compared, for example ["paddle", "torch"].
        groups: layer groups of the rows, as the data pass through them.
        losses: loss before each step, per side; empty when only a dump was compared.
        first_diverging: the first group in forward order that is too far apart; None if none is.
    """

    model: str
    sides: list[str]
    rows: list[Row]
    groups: list[str]
    losses: dict[str, list[float]]
    first_diverging: str | None
    notes: list[str] = field(default_factory=list)

    @property
    def within(self) -> bool:
        return all(row.within for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Plain data; infinite differences are written as null."""
        rows = [asdict(row) for row in self.rows]
        for row in rows:
            for key in ("absolute", "relative"):
                row[key] = row[key] if math.isfinite(row[key]) else None
        return {
            "model": self.model,
            "sides": self.sides,
            "within": self.within,
            "first_diverging": self.first_diverging,
            "tolerances": {kind: asdict(tolerance) for kind, tolerance in TOLERANCES.items()},
            "rows": rows,
            "losses": self.losses,
            "notes": self.notes,
        }


def compare(model: str, first: Measured, second: Measured, notes: Sequence[str] = ()) -> Report:
    """Compare what two sides computed; only what both have.

    Args:
        first: an engine's, whose layer groups count.

    Raises:
        XciteError: they have nothing in common.
    """
    rows: list[Row] = []
    layers = first.layers
    for kind, ours, theirs in (
        (ACTIVATIONS, first.activations, second.activations),
        (ACTIVATIONS_TRAIN, first.activations_train, second.activations_train),
    ):
        rows += [_row(kind, name, [(ours[name], theirs[name])]) for name in ours if name in theirs]
    if first.loss is not None and second.loss is not None:
        rows.append(_row(LOSS, "first batch", [(np.array(first.loss), np.array(second.loss))]))
    rows += _grouped(GRADIENTS, layers, first.gradients, second.gradients)
    rows += _steps(layers, first, second)
    rows += _grouped(STATISTICS, layers, first.statistics, second.statistics)
    for number, (ours_, theirs_) in enumerate(zip(first.losses, second.losses, strict=False), 1):
        rows.append(_row(CURVE, f"step {number}", [(np.array(ours_), np.array(theirs_))]))
    if not rows:
        raise XciteError(f"{first.name} and {second.name} have no tensor in common to compare")
    losses = {side.name: side.losses for side in (first, second) if side.losses}
    failing = next((row for row in rows if not row.within), None)
    return Report(
        model,
        [first.name, second.name],
        rows,
        _in_forward_order(rows, layers),
        losses,
        f"{failing.group} ({failing.kind})" if failing else None,
        list(notes),
    )


def _in_forward_order(rows: Sequence[Row], layers: Mapping[str, str]) -> list[str]:
    """The rows' layer groups; losses and steps are of no group."""
    found = {row.group for row in rows if row.kind not in (LOSS, CURVE)}
    known = [group for group in dict.fromkeys(layers.values()) if group in found]
    return known + sorted(found - {*known})


def _by_group(
    layers: Mapping[str, str], names: Mapping[str, object], others: Mapping[str, object]
) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, group in layers.items():
        if name in names and name in others:
            groups.setdefault(group, []).append(name)
    return groups


def _grouped(kind: str, layers: Mapping[str, str], ours: Arrays, theirs: Arrays) -> list[Row]:
    return [
        _row(kind, group, [(ours[name], theirs[name]) for name in names])
        for group, names in _by_group(layers, ours, theirs).items()
    ]


def _steps(layers: Mapping[str, str], first: Measured, second: Measured) -> list[Row]:
    """Weights after one step, where the gradient is clear of rounding."""
    rows = []
    for group, names in _by_group(layers, first.step, second.step).items():
        largest = max(float(np.abs(second.gradients[name]).max()) for name in names)
        worst = 0.0
        for name in names:
            clear = np.abs(second.gradients[name]) > CLEAR * largest
            apart = np.abs(first.step[name] - second.step[name])[clear]
            worst = max(worst, float(apart.max(initial=0.0)))
        worst = worst if math.isfinite(worst) else math.inf
        rows.append(Row(STEP, group, worst, worst, worst <= TOLERANCES[STEP].limit))
    return rows


def _row(kind: str, group: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Row:
    """Compare the tensors of a group, each by its own magnitude."""
    if any(ours.shape != theirs.shape for ours, theirs in pairs):
        return Row(kind, group, math.inf, math.inf, False)
    apart = [float(np.abs(ours.astype(np.float64) - theirs).max()) for ours, theirs in pairs]
    size = [float(np.abs(theirs).max()) for _, theirs in pairs]
    if not np.isfinite(apart + size).all():
        return Row(kind, group, math.inf, math.inf, False)
    floor = CLEAR * max(size)  # below it a tensor is rounding: class attention's key bias
    relative = max(
        difference / max(own, floor) if max(own, floor) else (math.inf if difference else 0.0)
        for difference, own in zip(apart, size, strict=True)
    )
    return Row(kind, group, max(apart), relative, relative <= TOLERANCES[kind].limit)
