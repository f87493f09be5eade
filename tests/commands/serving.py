"""A real bundle of a tiny XCiT, made from drawn weights without a training framework."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from xcite.canonical import initial_weights
from xcite.export.graph import build
from xcite.preprocessing import Preprocessing
from xcite.runtime.bundle import BundleInfo, describe, seal_folder
from xcite.variants import XCiTArchitecture

ARCHITECTURE = XCiTArchitecture(
    patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=7, tokens_norm=False
)
PREPROCESSING = Preprocessing(size=32, crop_ratio=0.875)
CLASS_NAMES = ["ant", "bee", "cat", "<b>dog</b>", "emu", "fox", "gnu"]


def make_bundle(folder: Path, size: tuple[int, int] = (32, 32)) -> Path:
    weights = initial_weights(ARCHITECTURE, seed=3)
    # Drawn weights say nearly the same of every picture and patch; larger ones have an opinion.
    for name in ("head.weight", *(f"cls_attn_blocks.{i}.attn.qkv.weight" for i in range(2))):
        weights[name] = 40 * weights[name]
    folder.mkdir(parents=True)
    onnx.save(build(weights, ARCHITECTURE, size=size), folder / "model.onnx")
    seal_folder(
        folder,
        BundleInfo(
            format="onnx",
            precision="f32",
            model="xcit_test",
            architecture=describe(ARCHITECTURE),
            size=size,
            preprocessing=PREPROCESSING.at(size),
            class_names=CLASS_NAMES,
            outputs=["logits", "class_attention"],
            agreement={},
        ),
    )
    return folder


def photograph(seed: int = 0, *, width: int = 80, height: int = 60, kind: str = "PNG") -> bytes:
    """Smooth coloured blobs, encoded."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def repeated_scans(side: int, times: int) -> bytes:
    """A progressive JPEG whose last scan is there ``times`` times: small, and long to decode."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "teal").save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * times + data[-2:]


def large_png(side: int = 7000) -> bytes:
    """A PNG of one colour: 49 megapixels are 150 kB."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "teal").save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def many_chunks(count: int) -> bytes:
    """A PNG with empty chunks before its pixels: each costs the reader time."""
    data = photograph()
    chunk = struct.pack(">I", 0) + b"teSt" + struct.pack(">I", zlib.crc32(b"teSt"))
    return data[:33] + count * chunk + data[33:]
