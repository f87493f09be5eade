"""A linear classifier on a frozen network's features: a teacher of a student's own classes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xcite.data.pipeline import EvaluationLoader
from xcite.data.sources import Source
from xcite.engines.interface import Engine
from xcite.engines.pixels import model_input
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.training.teachers.facts import weights_digest
from xcite.weights import Metadata
from xcite.weights.opening import WeightFile

FOLDS = 5
STRENGTHS = 10.0 ** np.arange(-5, 4)  # scikit-learn's C: small is smooth


@dataclass(frozen=True)
class Head:
    """A fitted classifier.

    Attributes:
        weight: float32 (K, d).
        bias: float32 (K,).
        strength: scikit-learn's C, chosen by cross-validation.
        accuracy: cross-validated, per cent.
    """

    weight: np.ndarray
    bias: np.ndarray
    strength: float
    accuracy: float


def features_of(
    network: Engine,
    source: Source,
    preprocessing: Preprocessing,
    *,
    batch: int,
    workers: int,
    after_batch: Callable[[int], None] = lambda done: None,
) -> tuple[np.ndarray, np.ndarray]:
    """What the network's classifier sees of every picture: float32 (n, d), and labels int64 (n,).

    Args:
        preprocessing: the network's own.
        after_batch: called with the number of pictures just done.

    Raises:
        XciteError: too many pictures that cannot be decoded, or none that can.
    """
    loader = EvaluationLoader(source, preprocessing, batch=batch, workers=workers, on_error="skip")
    features, labels = [], []
    for pictures in loader:
        features.append(network.features(model_input(pictures, preprocessing)))
        labels.append(pictures.labels)
        after_batch(len(pictures))
    if not features:
        raise XciteError("none of the pictures could be decoded")
    return np.concatenate(features), np.concatenate(labels)


def fit(features: np.ndarray, labels: np.ndarray, classes: int, *, seed: int = 0) -> Head:
    """Multinomial logistic regression by L-BFGS, its L2 penalty chosen by cross-validated loss.

    Features are standardised for the fit; the classifier takes them as they are.

    Args:
        features: float32 (n, d).
        labels: int64 (n,), each of the ``classes`` at least twice.

    Raises:
        XciteError: a class with fewer than two pictures, or scikit-learn is missing.
    """
    counts = np.bincount(labels, minlength=classes)
    if counts.min() < 2 or classes < 2:
        raise XciteError(
            f"class {counts.argmin()} has {counts.min()} pictures; every class needs two at least, "
            "and there must be two classes"
        )
    linear, selection = _scikit_learn()
    mean, deviation = features.mean(0, np.float64), features.std(0, dtype=np.float64)
    scale = 1 / np.maximum(deviation, 1e-6 * max(deviation.max(), 1e-12))
    standard = (features - mean) * scale
    folds = selection.StratifiedKFold(min(FOLDS, counts.min()), shuffle=True, random_state=seed)
    parts = list(folds.split(standard, labels))
    best, accuracy = _strength(linear, standard, labels, parts)
    fitted = linear.LogisticRegression(C=best, max_iter=1000).fit(standard, labels)
    weight, bias = fitted.coef_, fitted.intercept_
    if classes == 2:  # scikit-learn keeps the difference of the two
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight * scale
    return Head(
        weight.astype(np.float32), (bias - weight @ mean).astype(np.float32), best, accuracy
    )


def _strength(
    linear: Any, features: np.ndarray, labels: np.ndarray, parts: list[Any]
) -> tuple[float, float]:
    """The C of the least held-out cross-entropy, and its held-out accuracy in per cent."""
    found = []
    for strength in STRENGTHS:
        loss = right = 0.0
        for inside, outside in parts:
            model = linear.LogisticRegression(C=strength, max_iter=1000)
            model.fit(features[inside], labels[inside])
            shares = model.predict_proba(features[outside])
            own = shares[np.arange(len(outside)), labels[outside]]
            loss -= float(np.log(np.maximum(own, 1e-12)).sum())
            right += float((shares.argmax(1) == labels[outside]).sum())
        found.append((loss, float(strength), 100 * right / len(labels)))
        if loss > 1.05 * min(found)[0]:  # past the least; stronger fits take ever longer
            break
    return min(found)[1:]


def with_head(
    file: WeightFile, head: Head, class_names: list[str], preprocessing: Preprocessing, called: str
) -> tuple[dict[str, np.ndarray], Metadata]:
    """The network with the head in place of its own: tensors and metadata to be saved."""
    start = file.architecture.head
    tensors = {name: value for name, value in file.tensors.items() if not name.startswith(start)}
    tensors[f"{start}weight"], tensors[f"{start}bias"] = head.weight, head.bias
    metadata = Metadata(
        architecture=replace(file.architecture, num_classes=len(class_names)),
        class_names=class_names,
        preprocessing=preprocessing,
        provenance={
            "source": called,
            "source_sha256": weights_digest(file.tensors),
            "head": f"logistic regression on its features, C {head.strength:g}",
        },
        metrics={"cross_validated_top1": round(head.accuracy, 2)},
    )
    return tensors, metadata


def _scikit_learn() -> tuple[Any, Any]:
    try:
        from sklearn import linear_model, model_selection
    except ImportError:
        raise XciteError(
            "fitting a head needs scikit-learn: pip install 'xcite[teacher]'"
        ) from None
    return linear_model, model_selection
