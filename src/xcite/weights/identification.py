"""Which model one part of a file is, and what travels with it; nothing is read but names.

Names, shapes and metadata decide first, then a configuration beside the file and its name.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from xcite.errors import XciteError, naming
from xcite.families import FAMILIES, Architecture, XCiTArchitecture
from xcite.preprocessing import Preprocessing
from xcite.variants import find, list_published_names, relatives
from xcite.weights import catalog, dialects
from xcite.weights.containers import METADATA_KEY, Contents, State, listed
from xcite.weights.hub_config import HubConfig
from xcite.weights.imagenet import imagenet_classes
from xcite.weights.metadata import Metadata, metadata_from_json
from xcite.weights.parts import ROLES
from xcite.weights.recognition import architecture_of, variant_of
from xcite.weights.robust_models import is_cifar, robust_model
from xcite.weights.stored import ITEM_SIZES, StoredTensor


@dataclass
class Identified:
    """One part of a file under canonical names, nothing read yet.

    Attributes:
        assumed: fields of the architecture that no tensor shows and nothing says.
        aside: names of tensors that belong to no model.
        notes: what a person should know of this part, one line each.
    """

    stored: State
    architecture: Architecture
    dialect: str
    metadata: Metadata
    assumed: tuple[str, ...]
    aside: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def choose_part(contents: Contents, part: str | None, path: Path) -> str:
    """The name of the part to take."""
    if part is None:
        usual = (name for name in ("student", *ROLES) if name in contents.parts)
        return next(usual, next(iter(contents.parts)))
    part = "weights" if part == "model" else part
    if part not in contents.parts:
        raise XciteError(f"{path} has no part {part!r}; it holds {listed(list(contents.parts))}")
    return part


def identify(path: Path, contents: Contents, part: str, dialect: str | None = None) -> Identified:
    """Recognise dialect and model of one part from names, shapes and metadata.

    Raises:
        XciteError: unknown names, or a model that cannot be read from them.
    """
    state = contents.parts[part]
    known = dialects.recognise(state)
    if known is None:
        families = " or ".join(family.title for family in FAMILIES.values())
        names = ", ".join(name[:60] for name in list(state)[:4])
        raise XciteError(f"{path} holds no {families} that we know; it begins with {names!a}")
    kind = known[1]
    if dialect is None:
        dialect = known[0]
    elif dialect not in dialects.TABLES[kind]:
        raise XciteError(
            f"unknown dialect {dialect!r}; choose one of {', '.join(dialects.TABLES[kind])}"
        )
    own = contents.texts.get(METADATA_KEY)
    if own is not None or (contents.container == "safetensors" and not contents.beside):
        dialect = "xcite"
    with naming(path, f"{path} ({dialect})"):
        stored = dialects.translate(state, dialect, kind)
    # Xcite's own files hold nothing else; in them a strange name is an error, found later.
    foreign = [n for n in stored if own is None and not FAMILIES[kind].owns(n)]
    beside = {name: stored.pop(name) for name in foreign} | contents.beside.get(part, {})
    objects = [f"{n} is {t.dtype}" for n, t in stored.items() if t.dtype not in ITEM_SIZES]
    if objects:
        raise XciteError(f"{path} is refused: weights are no plain tensors: {listed(objects)}")
    metadata = metadata_from_json(own or "{}", str(path))
    with naming(path, f"{path} ({dialect})"):
        described = metadata.described_architecture()
        architecture = described or architecture_of({n: t.shape for n, t in stored.items()})
    model = Identified(stored, architecture, dialect, metadata, ())
    inside = _normalisation(beside)
    if described is None:
        _take_from_outside(model, path, contents.config or HubConfig(), inside)
    if own is None:
        model.metadata.provenance = {
            "source": path.name,
            "dialect": dialect,
            **({"assumed": list(model.assumed)} if model.assumed else {}),
        }
    model.aside = [n for n in beside if described or inside is None or n not in inside.names]
    if model.aside:
        model.notes.append(f"tensors that belong to no model are left aside: {listed(model.aside)}")
    return model


@dataclass(frozen=True)
class Normalisation:
    """Mean and deviation that are stored around a model, for pixels of 0..1."""

    names: tuple[str, str]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def _normalisation(beside: State) -> Normalisation | None:
    """That of RobustBench's wrapper, or of the Light Recipe's."""
    for names in (("normalize.mean", "normalize.std"), ("mean", "std")):
        mean, std = (_few(beside.get(name)) for name in names)
        if mean is not None and std is not None and len(mean) == len(std) and min(std) > 1e-6:
            scale = 255.0 if max(std) > 1.5 else 1.0  # some count pixels from 0 to 255
            return Normalisation(
                names, tuple(m / scale for m in mean), tuple(s / scale for s in std)
            )
    return None


def _few(tensor: StoredTensor | None) -> tuple[float, ...] | None:
    """The one or three numbers of a tensor; None if it holds anything else."""
    if tensor is None or "float" not in tensor.dtype or int(np.prod(tensor.shape)) not in (1, 3):
        return None
    numbers = tensor.read().ravel()
    # float32 to the decimal number that was meant: 0.485, not 0.48500001430511475
    return tuple(float(str(n)) for n in numbers) if np.isfinite(numbers).all() else None


def _take_from_outside(
    model: Identified, path: Path, config: HubConfig, inside: Normalisation | None
) -> None:
    """Variant, class names and preprocessing as names, shapes and a configuration tell them."""
    stem = path.name.rsplit(".", 1)[0]
    if config.fields and isinstance(model.architecture, XCiTArchitecture):
        model.architecture = replace(model.architecture, **config.fields)
    robust = robust_model(stem)
    classes = model.architecture.num_classes
    cifar = inside is not None and is_cifar(inside.mean, classes)
    _take_strides(model, robust.architecture if robust else config.architecture, cifar=cifar)
    variant = variant_of(model.architecture, config.full_name() or stem)
    if robust is not None and robust.architecture != variant:
        robust = None  # the name of a robust model on another one
    # A configuration names the model by its form alone; its tag tells what it was trained on.
    imagenet = config.imagenet if config.architecture else _is_published(variant, path.name)
    imagenet = imagenet or (robust is not None and robust.imagenet)
    names = imagenet_classes() if imagenet and classes == 1000 else None
    if config.class_names is not None and len(config.class_names) != classes:
        model.notes.append(
            f"config.json names {len(config.class_names)} classes, the head has {classes}; "
            "the names are left out"
        )
    elif config.class_names is not None:
        names = config.class_names
    model.notes += config.notes
    usual = _preprocessing(model.architecture, variant)
    told = robust.preprocessing if robust is not None else usual
    changes = dict(config.preprocessing) | ({"size": 32} if cifar else {})
    model.metadata = Metadata(
        variant=variant,
        architecture=model.architecture,
        class_names=names,
        preprocessing=_prepared(model, told, changes, inside),
    )
    unknown = model.architecture.unreadable if variant is None else ()
    # timm, whose arguments these are, has no other strides than the usual ones.
    known = {*config.fields, "stem_strides"} if config.fields else set()
    model.assumed = tuple(name for name in unknown if name not in known)


def _prepared(
    model: Identified,
    told: Preprocessing | None,
    changes: dict[str, Any],
    inside: Normalisation | None,
) -> Preprocessing | None:
    """The preprocessing that is told, changed as a configuration and a normalisation say."""
    channels = model.architecture.in_chans
    if inside is not None:
        wide = channels if len(inside.mean) == 1 and channels == 3 else 1  # one for all channels
        changes |= {"mean": inside.mean * wide, "std": inside.std * wide}
        model.notes.append(f"mean and deviation are the stored {' and '.join(inside.names)}")
    if not changes:
        return told
    merged = (told or model.architecture.preprocessing).model_copy(update=changes)
    if merged.channels != channels:
        model.notes.append(f"a mean of {merged.channels} channels is not taken over")
        return told
    return Preprocessing.model_validate(merged.model_dump())


def _take_strides(model: Identified, told: str | None, *, cifar: bool) -> None:
    """The stem's strides, which no tensor shows, from the model of that name or of CIFAR's mean."""
    found = model.architecture
    for name, row in relatives().items():
        named = told is not None and (told == name or told.startswith(f"{name}."))
        strided = isinstance(row, XCiTArchitecture) and row.stem_strides is not None
        if (named or (cifar and strided)) and row.same_tensors(found):
            model.architecture = find(name, num_classes=found.num_classes, in_chans=found.in_chans)
            if not named:
                model.notes.append(f"the normalisation is CIFAR's, so the stem is that of {name}")
            return


def _is_published(variant: str | None, file: str) -> bool:
    """Whether the file's name says that it is one of the published, which are of ImageNet."""
    stem = file.rsplit(".", 1)[0]
    entries = [entry for entry in catalog.entries() if entry.classes]
    names = {name for entry in entries for name in (entry.name, entry.file_name.rsplit(".", 1)[0])}
    return variant in list_published_names() or stem in names


def _preprocessing(architecture: Architecture, variant: str | None) -> Preprocessing | None:
    """That of the published model of this name."""
    if architecture.in_chans != 3 or variant is None:
        return None
    sizes = {entry.name: entry.resolution for entry in catalog.entries()}
    usual = architecture.preprocessing
    return usual.model_copy(update={"size": sizes.get(variant, usual.size)})
