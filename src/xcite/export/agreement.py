"""Proof on pictures that an exported graph gives the answers of the engine.

The tolerance follows from the arithmetic: float32 graphs differ from the engine by rounding alone;
float16 keeps 11 bits, bfloat16 8 and int8 fewer, so there the classes count too.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xcite.data.sources import Source, open_source
from xcite.engines.interface import Engine
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.randomness import generator
from xcite.runtime.predictor import input_pixels

PICTURES = 21  # enough for every batch size a `Predictor` compiles: 16 + 4 + 1
ENGINE_BATCH = 4  # bounds the memory of the larger models

# Largest difference of two logits, as a share of the largest logit. In float32 rounding alone gives
# about 1e-6, in float16 1e-3 (large_24_p16); all are safely above what a healthy model shows and
# far below a broken one.
TOLERANCE = {"f32": 1e-4, "f16": 0.01, "bf16": 0.1, "int8": 0.2}
TOP1 = 0.9  # share of the decided pictures that must be named alike
# A picture is undecided where the reference's two best logits are closer than this share of the
# largest: there the last bits decide, and an untrained model is undecided nearly everywhere.
UNDECIDED = 0.02


def pictures(
    spec: str | None, preprocessing: Preprocessing, size: tuple[int, int] | None, count: int
) -> tuple[np.ndarray, str]:
    """Pixels uint8 (n, H, W, C) to compare on, and where they come from.

    Evenly spread over the source; without ``spec`` the built-in digits, and where scikit-learn is
    missing, generated ones.

    Raises:
        XciteError: unreadable pictures.
    """
    if spec is None:
        try:
            source, origin = open_source("digits", channels=preprocessing.channels), "digits"
        except (ImportError, XciteError):
            decoded = _generated(count, preprocessing.channels)
            return np.stack([input_pixels(p, preprocessing, size) for p in decoded]), "generated"
    else:
        source, origin = open_source(spec, channels=preprocessing.channels), spec
    chosen = spread(len(source), count)
    return np.stack([source_pixels(source, i, preprocessing, size) for i in chosen]), origin


def spread(length: int, count: int) -> list[int]:
    """``count`` indices, or all, evenly spread: sources are sorted by class."""
    count = min(length, count)
    return [length * i // count for i in range(count)]


def source_pixels(
    source: Source, index: int, preprocessing: Preprocessing, size: tuple[int, int] | None
) -> np.ndarray:
    """One picture of a source as the graph will see it: uint8 (H, W, C)."""
    from xcite.data.decoding import decode

    picture = decode(source.read(index), channels=preprocessing.channels, origin=source.name(index))
    return input_pixels(picture, preprocessing, size)


def _generated(count: int, channels: int) -> list[np.ndarray]:
    """Smooth random colours: closer to photographs than noise."""
    from PIL import Image

    result = []
    for i in range(count):
        coarse = generator(i, "generated picture").integers(0, 256, (6, 8, channels), np.uint8)
        planes = [
            np.asarray(
                Image.fromarray(coarse[:, :, c]).resize((320, 240), Image.Resampling.BICUBIC)
            )
            for c in range(channels)
        ]
        result.append(np.stack(planes, axis=2))
    return result


def reference_logits(engine: Engine, images: np.ndarray) -> np.ndarray:
    """The engine's logits or embeddings float32 (n, K) of images (n, C, H, W), a few at a time."""
    parts = range(0, len(images), ENGINE_BATCH)
    return np.concatenate([engine.predict(images[i : i + ENGINE_BATCH]) for i in parts])


def compare(
    expected: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    precision: str,
    reference: str,
    *,
    answer: str = "logits",
) -> dict[str, Any]:
    """The report on pairs of logits or embeddings (n, K), as it goes into the bundle.

    Args:
        answer: "logits", of which the best one must be the same too, or "embedding".

    Raises:
        XciteError: the graph disagrees, with the figures.
    """
    a, b = np.concatenate(expected), np.concatenate(found)
    largest = float(np.abs(a).max())
    difference = float(np.abs(a - b).max())
    report = {
        "reference": reference,
        "pictures": len(a),
        "largest_logit": largest,
        "largest_difference": difference,
        "tolerance": TOLERANCE[precision] * largest,
    }
    # Negated comparisons, so that a NaN fails.
    if not np.isfinite(largest):
        raise XciteError(f"the {reference} engine's own {answer} are not finite; check the weights")
    if not difference <= TOLERANCE[precision] * largest:
        raise XciteError(
            f"the exported graph disagrees with the {reference} engine: {answer} differ by up to "
            f"{difference:.3g}, allowed are {TOLERANCE[precision] * largest:.3g} "
            f"({TOLERANCE[precision]:g} of the largest, {largest:.3g}); nothing was written"
        )
    return report | (_same_classes(a, b, reference) if answer == "logits" else {})


def _same_classes(a: np.ndarray, b: np.ndarray, reference: str) -> dict[str, Any]:
    """How often two pairs of logits (n, K) have the same best one.

    Raises:
        XciteError: too seldom.
    """
    best = np.sort(a, axis=1)[:, ::-1]
    if a.shape[1] > 1:
        decided = best[:, 0] - best[:, 1] > UNDECIDED * np.abs(a).max()
    else:
        decided = np.ones(len(a), bool)
    same = a.argmax(axis=1) == b.argmax(axis=1)
    if decided.any() and not same[decided].mean() >= TOP1:
        raise XciteError(
            f"the exported graph disagrees with the {reference} engine: it names "
            f"{same[decided].mean():.0%} of {decided.sum()} pictures alike, {TOP1:.0%} are needed; "
            "nothing was written"
        )
    return {
        "top1_agreement": float(same.mean()),
        "decided_pictures": int(decided.sum()),
        "decided_top1_agreement": float(same[decided].mean()) if decided.any() else None,
    }
