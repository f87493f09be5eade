"""What `config.json` beside the weights says, as timm and transformers write it for the hub."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing

CONFIG_LIMIT = 16 * 2**20  # bytes; the names of 21,843 classes need about 1 MB
# Files of a folder that the configuration beside them belongs to, best first.
WEIGHT_NAMES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json", "open_clip_model.safetensors", "model_state.pdparams",
)  # fmt: skip
_SHARD = re.compile(r"(model|pytorch_model)-\d{5}-of-\d{5}\.(safetensors|bin)")
_RESAMPLING = {2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}


@dataclass
class HubConfig:
    """What a configuration tells of a model.

    Attributes:
        architecture: the name of the model, as timm knows it, and the ``tag`` of its weights.
        class_names: one a class, in the order of the logits; None if there are only numbers.
        preprocessing: fields of `Preprocessing` that are told.
        imagenet: the source says that the classes are ImageNet-1k's.
        fields: of the architecture, which no tensor shows and timm's arguments tell.
        notes: what could not be taken over.
    """

    architecture: str | None = None
    tag: str | None = None
    class_names: list[str] | None = None
    preprocessing: dict[str, Any] = field(default_factory=dict)
    imagenet: bool = False
    fields: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def full_name(self) -> str | None:
        """Such as "xcit_nano_12_p8_224.fb_in1k"."""
        return f"{self.architecture}.{self.tag}" if self.tag else self.architecture


def config_beside(weights: Path) -> HubConfig | None:
    """The configuration of a weights file of a hub's folder; None for any other file.

    Raises:
        XciteError: it is oversized or no JSON.
    """
    path = weights.with_name("config.json")
    if not (weights.name in WEIGHT_NAMES or _SHARD.fullmatch(weights.name)) or not path.is_file():
        return None
    told = _table(path)
    found = HubConfig()
    cfg = told.get("pretrained_cfg")
    cfg = {**told, **cfg} if isinstance(cfg, dict) else told
    name = cfg.get("architecture", told.get("architecture"))
    found.architecture = name[:200] if isinstance(name, str) else None
    tag = cfg.get("tag")
    found.tag = tag[:200] if isinstance(tag, str) else None
    found.imagenet = "in1k" in re.split(r"[._-]", found.full_name() or "")
    found.class_names = _class_names(told, cfg)
    found.fields = _unseen_fields(told.get("model_args"))
    _take_timm(cfg, found)
    processor = weights.with_name("preprocessor_config.json")
    if processor.is_file():
        _take_transformers(_table(processor), found)
    _check(found)
    return found


def _table(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > CONFIG_LIMIT:
            raise XciteError(f"{path} is larger than a configuration ({CONFIG_LIMIT} bytes)")
        told = json.loads(path.read_bytes())
    except OSError as error:
        raise XciteError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise XciteError(f"{path} is no JSON text; fetch it again or remove it") from error
    if not isinstance(told, dict):
        raise XciteError(f"{path} holds no table of settings; fetch it again or remove it")
    return told


def _class_names(told: Mapping[str, Any], cfg: Mapping[str, Any]) -> list[str] | None:
    names: Any = cfg.get("label_names") or told.get("label_names")
    by_number = told.get("id2label")
    if names is None and isinstance(by_number, dict):
        names = [by_number.get(str(i)) for i in range(len(by_number))]
        if all(re.fullmatch(r"LABEL_\d+", str(name)) for name in names):
            return None  # transformers' way of saying that there are no names
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        return None
    return [name[:1000] for name in names]


def _unseen_fields(arguments: Any) -> dict[str, Any]:
    """Of timm's arguments those that no tensor shows."""
    types: dict[str, tuple[type, ...]] = {"tokens_norm": (bool,), "eta": (float, int)}
    if not isinstance(arguments, dict):
        return {}
    return {name: arguments[name] for name in types if type(arguments.get(name)) in types[name]}


def _take_timm(cfg: Mapping[str, Any], found: HubConfig) -> None:
    size = cfg.get("input_size")
    if isinstance(size, list) and len(size) == 3 and all(type(n) is int for n in size):
        found.preprocessing["size"] = tuple(size[1:])  # an oblong is covered, as ours
    for ours, theirs in (("mean", "mean"), ("std", "std"), ("crop_ratio", "crop_pct")):
        if cfg.get(theirs) is not None:
            value = cfg[theirs]
            found.preprocessing[ours] = tuple(value) if isinstance(value, list) else value
    if "interpolation" in cfg:
        _take_interpolation(cfg["interpolation"], found)


def _take_transformers(cfg: Mapping[str, Any], found: HubConfig) -> None:
    crops = cfg.get("do_center_crop", "crop_size" in cfg) and "crop_size" in cfg
    size = cfg.get("crop_size") if crops else cfg.get("size")
    if isinstance(size, dict):
        size = [size.get("height", size.get("shortest_edge")), size.get("width")]
        size = [size[0], size[0] if size[1] is None else size[1]]
    _take_size(size if isinstance(size, list) else [size, size], found)
    shorter = cfg.get("size")
    shorter = shorter.get("shortest_edge") if isinstance(shorter, dict) else shorter
    ours = found.preprocessing.get("size")
    if crops and isinstance(shorter, int) and isinstance(ours, int) and shorter >= ours:
        found.preprocessing["crop_ratio"] = ours / shorter
    for name, key in (("mean", "image_mean"), ("std", "image_std")):
        if isinstance(cfg.get(key), list):
            found.preprocessing[name] = tuple(cfg[key])
    if cfg.get("do_normalize") is False:
        found.preprocessing |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if cfg.get("do_rescale") is False:
        found.notes.append("preprocessor_config.json does not scale pixels to 0..1; it is ignored")
    if "resample" in cfg:
        _take_interpolation(cfg["resample"], found)


def _take_size(size: list[Any], found: HubConfig) -> None:
    if len(size) == 2 and all(type(n) is int for n in size):
        if size[0] == size[1]:
            found.preprocessing["size"] = size[0]
        else:
            found.notes.append(f"the configuration's input of {size[0]} x {size[1]} is not square")


def _take_interpolation(told: Any, found: HubConfig) -> None:
    known = _RESAMPLING.get(told) if isinstance(told, str | int) else None
    if known is None:
        found.notes.append(f"interpolation {str(told)[:40]!a} is not known; bicubic is taken")
    else:
        found.preprocessing["interpolation"] = known


def _check(found: HubConfig) -> None:
    """Leave out what no preprocessing can be, and say so."""
    try:
        Preprocessing(**found.preprocessing)
    except (ValueError, TypeError) as error:
        found.preprocessing = {}
        reason = str(error).splitlines()[0]
        found.notes.append(f"the configuration's preprocessing is not taken over: {reason[:200]}")
