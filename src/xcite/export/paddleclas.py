"""What PaddleClas' predictor needs beside a program: ``inference.yml``.

Written for deploy/python/predict_cls.py of PaddleClas 2.6 (PreProcess.transform_ops and
PostProcess.Topk with label_list, as its own export writes them), which asks for
``inference.json`` and ``inference.pdiparams`` in one folder and takes the first output.
"""

import math
from pathlib import Path
from typing import Any

import yaml

from xcite.runtime.bundle import PADDLECLAS, BundleInfo
from xcite.whole_files import write_text

TOP = 5


def inference_config(info: BundleInfo) -> dict[str, Any] | str:
    """The configuration, or a note on what of the bundle PaddleClas has no words for."""
    seen = info.preprocessing
    if info.answer == "embedding":
        return f"no {PADDLECLAS} for PaddleClas is written: the bundle gives no classes"
    if seen.channels != 3 or not isinstance(seen.size, int):
        return (
            f"no {PADDLECLAS} for PaddleClas is written: it prepares squares of RGB pictures only"
        )
    height, width = info.size or (seen.size, seen.size)
    top: dict[str, Any] = {"topk": min(TOP, int(info.architecture["num_classes"]))}
    if info.class_names:
        top["label_list"] = list(info.class_names)
    resize = {
        "resize_short": math.floor(seen.size / seen.crop_ratio),
        "interpolation": seen.interpolation,
        "backend": "pil",
    }
    normalise = {
        "scale": 1 / 255,
        "mean": list(seen.mean),
        "std": list(seen.std),
        "order": "hwc",
        "channel_num": 3,
    }
    return {
        "Global": {
            "model_name": info.model or "XCiT",
            "infer_imgs": ".",
            "inference_model_dir": ".",
            "batch_size": 1,
            "use_gpu": False,
            "enable_mkldnn": True,
            "cpu_num_threads": 10,
            "enable_profile": False,
            "use_fp16": False,
            "ir_optim": True,
            "use_tensorrt": False,
        },
        "PreProcess": {
            "transform_ops": [
                {"ResizeImage": resize},
                {"CropImage": {"size": [width, height]}},  # in this order, whatever its comment
                {"NormalizeImage": normalise},
                {"ToCHWImage": None},
            ]
        },
        "PostProcess": {"main_indicator": "Topk", "Topk": top},
    }


def write(config: dict[str, Any], folder: Path) -> None:
    """Write it into a bundle's folder."""
    write_text(folder / PADDLECLAS, yaml.safe_dump(config, sort_keys=False))
