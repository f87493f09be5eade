"""Where a model looks: class attention, the channel maps of XCA, and occlusion as second opinion.

Class attention says from which patches CLS gathers, not what decides: occlusion asks the model
itself, by hiding parts of the picture (Zeiler and Fergus 2014, arXiv 1311.2901).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xcite.errors import XciteError
from xcite.figures.lettering import Lettering, lettering
from xcite.preprocessing import sides
from xcite.runtime.classifier import EngineClassifier
from xcite.runtime.opening import OpenedModel
from xcite.runtime.predictor import Predictor, input_pixels
from xcite.runtime.ranking import class_name, probabilities
from xcite.whole_files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LARGEST_INPUT = 4096 * 4096  # pixels; every patch is a token


def attention_maps(model: OpenedModel, images: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Where an XCiT looks on normalised float32 images (B, C, H, W).

    Returns:
        Class attention (B, layers, heads, 1 + N), and per XCA block (B, heads, c, c); a bundle's
        graph does not give the latter.
    """
    if isinstance(model.classifier, EngineClassifier):
        found = model.classifier.engine.attention(images)
        return np.stack(found.classes, axis=1), found.channels
    assert isinstance(model.classifier, Predictor)
    return model.classifier.attention(images), []


def patch_size(model: OpenedModel) -> int:
    """Pixels a patch.

    Raises:
        XciteError: the family has no attention.
    """
    if not model.architecture.has_attention_maps:
        kind = model.architecture.with_article
        raise XciteError(f"this model is {kind}, which has no attention to draw")
    return model.architecture.stride


def input_picture(
    picture: np.ndarray, model: OpenedModel, *, size: int | None = None, whole: bool = False
) -> np.ndarray:
    """The pixels the model is shown, uint8 (H, W, C), any H and W for weights.

    Args:
        picture: uint8 (H, W, C).
        size: side of the square, or shorter side with ``whole``; None as the preprocessing says.
        whole: keep the whole picture in its proportions, cut nothing off.

    Raises:
        XciteError: not an XCiT, or a size the model does not take.
    """
    preprocessing, patch = model.preprocessing, patch_size(model)
    own = sides(preprocessing.size)
    wanted = size or min(own)
    if model.size and (whole or (size and size not in (preprocessing.size, *model.size))):
        height, width = model.size
        raise XciteError(
            f"this bundle takes only {height} x {width}; draw from the weights, "
            "or export with --size dynamic"
        )
    if wanted < patch:
        raise XciteError(f"size {wanted} is smaller than a patch of {patch} pixels")
    if not whole:
        if size and not model.size:
            if size * size > LARGEST_INPUT:
                raise XciteError(f"size {size} is too large; at most {math.isqrt(LARGEST_INPUT)}")
            preprocessing = preprocessing.at(size)
        return input_pixels(picture, preprocessing, model.size)
    from xcite.data.transforms import pixels_of, resize, to_image

    # Whole patches: padding at the edges would show up in the maps.
    shorter = min(picture.shape[:2])
    height, width = (
        max(1, round(side * wanted / shorter / patch)) * patch for side in picture.shape[:2]
    )
    if height * width > LARGEST_INPUT:
        raise XciteError(f"{height} x {width} pixels are too many; give a smaller --size")
    return pixels_of(resize(to_image(picture), (height, width), preprocessing.interpolation))


@dataclass(frozen=True)
class Explanation:
    """What a model says about one picture, and where it looked.

    Attributes:
        picture: uint8 (H, W, C), what the model was shown.
        classes: float32 (layers, heads, rows, columns): attention of CLS to the patches.
        own: float32 (layers, heads): attention of CLS to itself; with ``classes`` it sums to 1.
        channels: per XCA block float32 (heads, c, c); empty when the model does not give them.
        probabilities: float64 (K,).
        label: name of the most probable class.
        occlusion: float32 (H, W), by how much hiding a place lowers the probability of ``label``;
            None when not asked for.
    """

    picture: np.ndarray
    classes: np.ndarray
    own: np.ndarray
    channels: list[np.ndarray]
    probabilities: np.ndarray
    label: str
    occlusion: np.ndarray | None

    def save(self, path: str | Path) -> None:
        """Write all arrays as a compressed .npz."""
        arrays = {
            "picture": self.picture,
            "class_attention": self.classes,
            "class_attention_mean": self.classes.mean(axis=1),
            "cls_to_itself": self.own,
            "probabilities": self.probabilities,
            "label": np.array(self.label),
            **{f"channels_{i}": block for i, block in enumerate(self.channels)},
        }
        if self.occlusion is not None:
            arrays["occlusion"] = self.occlusion
        with whole_file(path) as aside, aside.open("wb") as file:
            np.savez_compressed(file, **arrays)


def explain(model: OpenedModel, picture: np.ndarray, *, occlusion: bool = True) -> Explanation:
    """Run the model on pixels from `input_picture`."""
    from xcite.data.transforms import normalise

    images = normalise(picture[None], model.preprocessing)  # (1, C, H, W)
    height, width = picture.shape[:2]
    patch = patch_size(model)
    grid = math.ceil(height / patch), math.ceil(width / patch)
    classes, channels = attention_maps(model, images)
    classes = np.asarray(classes[0], np.float32)  # (layers, heads, 1 + N)
    shares = probabilities(model.classifier.logits(images))[0]
    best = int(shares.argmax())
    hidden = None
    if occlusion:
        hidden = occlusion_map(
            lambda batch: probabilities(model.classifier.logits(batch))[:, best],
            images[0],
            side=max(patch, min(height, width) // 6),
        )
    return Explanation(
        picture=picture,
        classes=classes[..., 1:].reshape(*classes.shape[:2], *grid),
        own=classes[..., 0],
        channels=[np.asarray(block[0], np.float32) for block in channels],
        probabilities=shares,
        label=class_name(model.class_names, best),
        occlusion=hidden,
    )


def occlusion_map(
    probability: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    *,
    side: int,
    batch: int = 32,
) -> np.ndarray:
    """By how much a grey square over each place lowers a probability: float32 (H, W).

    Args:
        probability: images (B, C, H, W) to the probability in question (B,).
        image: normalised (C, H, W); 0 is the data's mean, the grey of the square.
        side: of the square in pixels; it moves by half its side.

    Returns:
        Per pixel the mean drop over all squares that covered it.
    """
    height, width = image.shape[1:]
    step = max(1, side // 2)
    places = [
        (top, left) for top in _starts(height, side, step) for left in _starts(width, side, step)
    ]
    before = float(probability(image[None])[0])
    total = np.zeros((height, width))
    covered = np.zeros((height, width))
    for first in range(0, len(places), batch):
        part = places[first : first + batch]
        images = np.repeat(image[None], len(part), axis=0)
        for one, (top, left) in zip(images, part, strict=True):
            one[:, top : top + side, left : left + side] = 0
        for (top, left), after in zip(part, probability(images), strict=True):
            total[top : top + side, left : left + side] += before - after
            covered[top : top + side, left : left + side] += 1
    return (total / covered).astype(np.float32)


def _starts(length: int, side: int, step: int) -> list[int]:
    last = max(length - side, 0)
    return sorted({*range(0, last, step), last})


def draw_attention(explanation: Explanation, path: str | Path) -> None:
    """PNG: the picture, the mean of each layer, occlusion; below them every head."""
    with lettering([explanation.label]) as letters:
        _save(_drawn(explanation, letters), path)


def _drawn(explanation: Explanation, letters: Lettering) -> "Figure":
    tr = letters.tr
    layers, heads = explanation.classes.shape[:2]
    columns = min(max(heads, layers + 1 + (explanation.occlusion is not None)), 8)
    rows_per_layer = math.ceil(heads / columns)
    rows = 1 + layers * rows_per_layer
    height, width = explanation.picture.shape[:2]
    figure = _figure(2.3 * columns, (2.3 * height / width + 0.35) * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    _show_picture(axes[0, 0], explanation.picture)
    share = 100 * explanation.probabilities.max()
    axes[0, 0].set_title(f"{letters(explanation.label, 28)} {share:.1f} %", fontsize=9)
    for layer in range(layers):
        _overlay(axes[0, 1 + layer], explanation.picture, explanation.classes[layer].mean(axis=0))
        axes[0, 1 + layer].set_title(
            tr("layer {layer}, mean of heads", layer=layer + 1), fontsize=9
        )
        for head in range(heads):
            row = 1 + layer * rows_per_layer + head // columns
            axis = axes[row, head % columns]
            _overlay(axis, explanation.picture, explanation.classes[layer, head])
            own = 100 * explanation.own[layer, head]
            place = tr("layer {layer}, head {head}", layer=layer + 1, head=head + 1)
            axis.set_title(f"{place} (CLS {own:.0f} %)", fontsize=8)
    if explanation.occlusion is not None:
        axis = axes[0, 1 + layers]
        _show_picture(axis, explanation.picture)
        drop = 100 * explanation.occlusion
        most = max(float(np.abs(drop).max()), 1e-6)
        axis.imshow(drop, cmap="RdBu_r", vmin=-most, vmax=most, alpha=0.6)
        said = tr("occlusion, drop up to {drop:.1f} pt", drop=max(float(drop.max()), 0))
        axis.set_title(said, fontsize=8)
    letters.note(figure)
    return figure


def draw_channels(explanation: Explanation, path: str | Path) -> None:
    """PNG: the channel maps of XCA, a row per head and a column per block."""
    with lettering([]) as letters:
        _save(_drawn_channels(explanation, letters), path)


def _drawn_channels(explanation: Explanation, letters: Lettering) -> "Figure":
    blocks, heads = len(explanation.channels), explanation.channels[0].shape[0]
    figure = _figure(max(1.15 * blocks, 4), 1.2 * heads + 0.5)
    axes = figure.subplots(heads, blocks, squeeze=False)
    for block, maps in enumerate(explanation.channels):
        for head, channel_map in enumerate(maps):  # (c, c), rows are q's channels and sum to 1
            axis = axes[head, block]
            axis.imshow(channel_map, cmap="inferno", vmin=0, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if head == 0:
                axis.set_title(letters.tr("block {block}", block=block + 1), fontsize=8)
            if block == 0:
                axis.set_ylabel(letters.tr("head {head}", head=head + 1), fontsize=8)
    figure.suptitle(letters.tr("XCA: rows take from columns (channels of a head)"), fontsize=9)
    return figure


def picture_png(picture: np.ndarray) -> bytes:
    """The picture itself as PNG bytes."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(_visible_channels(picture)).save(buffer, "PNG")
    return buffer.getvalue()


def overlay_png(picture: np.ndarray, attention: np.ndarray, *, side: float = 1.8) -> bytes:
    """The picture under a heat map, as PNG bytes of ``side`` inches (100 pixels each)."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(side, side * picture.shape[0] / picture.shape[1]))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    _overlay(axis, picture, attention)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    # Not pyplot: no global state, no display, nothing to close.
    return Figure(figsize=(width, height), layout="constrained")


def _show_picture(axis: "Axes", picture: np.ndarray) -> None:
    shown = _visible_channels(picture)
    grey: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255}
    axis.imshow(shown, **(grey if shown.ndim == 2 else {}))


def _visible_channels(picture: np.ndarray) -> np.ndarray:
    """Of (H, W, C) the first three channels, or the first as grey where there are fewer."""
    return picture[..., :3] if picture.shape[-1] >= 3 else picture[..., 0]


def _overlay(axis: "Axes", picture: np.ndarray, attention: np.ndarray) -> None:
    height, width = picture.shape[:2]
    _show_picture(axis, picture)
    axis.imshow(
        attention,
        cmap="inferno",
        vmin=0,
        alpha=0.65,
        interpolation="bilinear",
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )


def _save(figure: "Figure", path: str | Path) -> None:
    with whole_file(path) as aside:
        figure.savefig(aside, format="png", dpi=120)
