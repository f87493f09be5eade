"""A folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads.

``config.json`` in the form of timm's own `save_for_hf` beside ``model.safetensors`` under timm's
names: class names and preprocessing travel with the weights. `hub_config` reads it back.
Source: huggingface/pytorch-image-models (models/_hub.py, _builder.py, xcit.py, regnet.py).
"""

import json
from pathlib import Path
from typing import Any

from xcite.control_characters import writable_json
from xcite.errors import XciteError
from xcite.families import Architecture, XCiTArchitecture
from xcite.preprocessing import Preprocessing
from xcite.variants import ARCHITECTURES, RegNetArchitecture, published
from xcite.weights import dialects
from xcite.weights.imagenet import in_imagenet_order
from xcite.weights.metadata import Metadata
from xcite.weights.opening import WeightFile
from xcite.weights.safetensors_files import write_safetensors
from xcite.whole_files import whole_folder, write_text

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# timm's arguments of an XCiT that is none of the published ones; ours of other names
_ARGUMENTS = (
    *("patch_size", "embed_dim", "depth", "num_heads", "cls_attn_layers", "mlp_ratio"),
    *("qkv_bias", "eta", "tokens_norm"),
)
_STEMS = {8: "xcit_nano_12_p8_224", 16: "xcit_nano_12_p16_224"}  # of the patch sizes that timm has


def write_timm_hub(folder: Path, weights: WeightFile) -> int:
    """Write the folder, whole or not at all; an earlier one of timm's form is replaced.

    Returns:
        How many tensors timm finds in it.

    Raises:
        XciteError: a model that timm cannot build, or a folder that is something else.
    """
    config = hub_config(weights.architecture, weights.metadata)
    tensors = dialects.express(weights.tensors, "timm", weights.architecture)
    with whole_folder(folder, _own, "a folder of timm's form") as aside:
        write_safetensors(aside / WEIGHTS, tensors, {"format": "pt"})
        text = json.dumps(config, indent=2, ensure_ascii=False)
        write_text(aside / CONFIG, writable_json(text) + "\n")
    return len(tensors)


def hub_config(architecture: Architecture, metadata: Metadata) -> dict[str, Any]:
    """What ``config.json`` holds.

    Raises:
        XciteError: timm has no such model.
    """
    a, names = architecture, metadata.class_names
    row = {row.name: row for row in published()}.get(metadata.variant or "")
    told = metadata.preprocessing or Preprocessing.assumed(a.in_chans)
    name, arguments = _timm_model(a, told)
    config: dict[str, Any] = {
        "architecture": name,
        "num_classes": a.num_classes,
        "num_features": a.num_features,
    }
    if names:
        config["label_names"] = names
    if arguments:
        config["model_args"] = arguments
    cfg: dict[str, Any] = {
        "custom_load": False,
        "input_size": [a.in_chans, told.height, told.width],
        "fixed_input_size": False,
        "interpolation": told.interpolation,
        "crop_pct": told.crop_ratio,
        "crop_mode": "center",
        "mean": list(told.mean),
        "std": list(told.std),
        "num_classes": a.num_classes,
        "pool_size": None,
        # timm takes the kernel behind this name for one of three channels and fits it anew
        "first_conv": a.first_convolution.removesuffix(".weight") if a.in_chans == 3 else None,
        "classifier": a.head.removesuffix(".") if a.num_classes else None,
    }
    if row is not None and names and in_imagenet_order(names):
        cfg["tag"] = "fb_dist_in1k" if row.distilled else "fb_in1k"
    return {**config, "pretrained_cfg": cfg}


def _timm_model(architecture: Architecture, told: Preprocessing) -> tuple[str, dict[str, Any]]:
    """timm's name, and arguments where the model of that name is another one."""
    usual = next(
        (n for n, row in ARCHITECTURES.items() if row.structure() == architecture.structure()), None
    )
    if not isinstance(architecture, XCiTArchitecture):
        if usual not in _others():
            raise XciteError(f"besides XCiT, timm folders are written of {', '.join(_others())}")
        return usual, {}
    a = architecture
    if a.stem_strides is not None or a.patch_size not in _STEMS or a.attention_scale:
        raise XciteError(
            "timm's XCiT has patches of 8 or 16 pixels, a stem of strides 2 and attention's usual "
            "scale; this one has others"
        )
    if usual is not None and ARCHITECTURES[usual].fields()["eta"] == a.eta:
        return f"{usual}_{384 if told.size == 384 else 224}", {}
    arguments = {name: getattr(a, name) for name in _ARGUMENTS}
    return _STEMS[a.patch_size], {**arguments, "use_pos_embed": a.use_pos}


def _others() -> list[str]:
    return [n for n, row in ARCHITECTURES.items() if isinstance(row, RegNetArchitecture)]


def _own(folder: Path) -> set[str] | None:
    names = {CONFIG, WEIGHTS}
    return names if all((folder / name).is_file() for name in names) else None
