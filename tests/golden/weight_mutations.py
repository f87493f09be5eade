"""Damaged and made-up weight files from a seed: what the fuzzing tests feed the reader."""

import argparse
import collections
import datetime
import decimal
import functools
import gzip
import io
import json
import pathlib
import pickle
import random as python_random
import struct
import zipfile

import numpy as np

from xcite.canonical import initial_weights
from xcite.errors import XciteError
from xcite.variants import RegNetArchitecture, XCiTArchitecture
from xcite.weights import open_weights
from xcite.weights.dialects import express
from xcite.weights.paddle_files import write_paddle
from xcite.weights.safetensors_files import write_safetensors
from xcite.weights.torch_writer import write_torch

# As small as the models get: nearly every byte of such a file is structure.
TINY_XCIT = XCiTArchitecture(2, embed_dim=4, depth=1, num_heads=1, num_classes=2, cls_attn_layers=1)
TINY_REGNET = RegNetArchitecture(8, 0.0, 2.0, 8, depth=1, stem_width=8, num_classes=2)

_EXTREMES = [0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
_NAMES = [
    "cls_token", "head.weight", "numpy", "ndarray", "dtype", "numpy.core.multiarray",
    "_reconstruct", "scalar", "_codecs", "encode", "latin1", "builtins", "eval", "tuple", "os",
    "system", "torch", "FloatStorage", "torch._utils", "_rebuild_tensor_v2", "collections",
    "OrderedDict", "argparse", "Namespace", "model", "storage", "0", "f4", "O8", "<", "rm",
    "set", "frozenset", "functools", "partial", "device", "torch.storage", "UntypedStorage",
    "_rebuild_tensor_v3", "float8_e4m3fn", "torch._tensor", "_rebuild_from_type_v2", "Tensor",
    "lightning.pytorch.callbacks", "Callback", "timm.os", "subprocess", "Popen", "getattr",
    "copyreg", "_reconstructor", "module.cls_token", "teacher.cls_token", "defaultdict",
]  # fmt: skip


def company(protocol):
    """What training scripts keep beside the weights, of every kind that is only named."""
    device_like = {(1, 2): 3, 2.5: "float", None: "none", 7: "int", b"k": 1}
    values = {
        "args": argparse.Namespace(
            path=pathlib.PurePosixPath("/x"), when=datetime.date(2024, 1, 1)
        ),
        "sets": [{1, 2}, frozenset("ab"), slice(1, 2), 1j, range(3), bytearray(b"x"), 2**5000],
        "keys": device_like,
        "settings": collections.defaultdict(list, a=[decimal.Decimal("1.5")]),
        "counts": collections.Counter("aab"),
        "queue": collections.deque([1], 3),
        "call": functools.partial(complex, 1),
        "python": python_random.Random(0).getstate(),
        "numpy": [np.random.RandomState(0), np.random.default_rng(0), np.dtype("U7")],
        "arrays": [np.arange(3, dtype=k) for k in ("u4", "u8", "c8", "c16")],
        "names": [np.array(["cat"]), np.array([{}], object), np.float32(2), np.bool_(1)],
    }
    weights = express(initial_weights(TINY_XCIT), "official", TINY_XCIT)
    weights = {f"_orig_mod.module.{name}": array for name, array in weights.items()}
    loss = {"criterion.weight": np.ones(2, np.float32)}
    return pickle.dumps(
        {"state": {"net": weights | loss}, "ema_state": weights, **values}, protocol
    )


def float8_file():
    """A `.pth` whose tensors are float8, and one with attributes, as PyTorch writes them."""
    from xcite.weights.pickle_writer import PickleWriter

    program, storages = io.BytesIO(), []
    writer = PickleWriter(program, 2)
    writer.raw(b"}(")
    for index, (name, array) in enumerate(initial_weights(TINY_XCIT).items()):
        writer.text(name)
        if index % 2:
            writer.global_("torch._tensor", "_rebuild_from_type_v2")
            writer.raw(b"(")
        writer.global_("torch._utils", "_rebuild_tensor_v3")
        if index % 2:
            writer.global_("torch", "Tensor")
        writer.raw(b"((")
        writer.text("storage")
        writer.global_("torch.storage", "UntypedStorage")
        writer.text(str(index))
        writer.text("cpu")
        writer.integer(array.size)
        writer.raw(b"tQ")
        writer.integer(0)
        writer.integers(array.shape)
        strides = [int(np.prod(array.shape[i + 1 :], dtype=int)) for i in range(array.ndim)]
        writer.integers(tuple(strides))
        writer.raw(b"\x89")
        writer.global_("collections", "OrderedDict")
        writer.raw(b")R")
        writer.global_("torch", "float8_e5m2")
        writer.raw(b"t}tR" if index % 2 else b"tR")
        storages.append(b"\x3e" * array.size)  # 1.5
    writer.raw(b"u.")
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("f8/data.pkl", program.getvalue())
        for index, storage in enumerate(storages):
            archive.writestr(f"f8/data/{index}", storage)
    return written.getvalue()


def seeds(folder):
    """Small whole files of every container: name -> bytes."""
    files = {f"company_{protocol}.pdparams": company(protocol) for protocol in (2, 4, 5)}
    files["float8.pth"] = float8_file()
    for kind, architecture in (("xcit", TINY_XCIT), ("regnet", TINY_REGNET)):
        weights = initial_weights(architecture)
        for dialect in ("official", "timm", "passl", "paddlevit"):
            tensors = express(weights, dialect, architecture)
            if dialect in ("passl", "paddlevit"):
                path = folder / f"{kind}_{dialect}.pdparams"
                write_paddle(path, tensors)
                files[path.name] = path.read_bytes()
                for protocol in (2, 4, 5):
                    name = f"{kind}_{dialect}_{protocol}.pdparams"
                    files[name] = pickle.dumps(tensors, protocol)
            else:
                path = folder / f"{kind}_{dialect}.pth"
                write_torch(path, tensors, wrap="model" if dialect == "official" else None)
                files[path.name] = path.read_bytes()
                path = folder / f"{kind}_{dialect}.safetensors"
                write_safetensors(path, tensors)
                files[path.name] = path.read_bytes()
    plain = files["xcit_official.pth"]
    files["packed.pth"] = gzip.compress(plain)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/xcit.pth", plain)
    files["zipped.pth"] = packed.getvalue()
    wrapped = {f"student.model.{n}": a for n, a in initial_weights(TINY_XCIT).items()}
    wrapped |= {f"teacher.model.{n}": a for n, a in initial_weights(TINY_REGNET).items()}
    wrapped["normalize.mean"] = wrapped["normalize.std"] = np.full((1, 3, 1, 1), 0.5, np.float32)
    write_safetensors(folder / "wrapped.safetensors", wrapped)
    files["wrapped.safetensors"] = (folder / "wrapped.safetensors").read_bytes()
    return files


def damaged(data, random, others):
    """A copy with one to six wounds; now and then the wound is inside a zip's pickle."""
    if data.startswith(b"PK") and random.random() < 0.7:
        return _damaged_inside_zip(data, random)
    if data[8:9] == b"{" and random.random() < 0.5:
        length = int.from_bytes(data[:8], "little")
        header = _wounded(data[8 : 8 + length], random, others)
        return len(header).to_bytes(8, "little") + header + data[8 + length :]
    return _wounded(data, random, others)


def _wounded(data, random, others):
    wounded = bytearray(data)
    for _ in range(int(random.integers(1, 7))):
        at = int(random.integers(0, len(wounded) + 1))
        length = int(random.integers(1, 40))
        kind = int(random.integers(0, 8))
        if kind == 0:
            wounded[at : at + 1] = bytes([int(random.integers(0, 256))])
        elif kind == 1:
            value = _EXTREMES[int(random.integers(0, len(_EXTREMES)))]
            width = int(random.choice([1, 2, 4, 8]))
            wounded[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
        elif kind == 2:
            del wounded[at : at + length]
        elif kind == 3:
            wounded[at:at] = wounded[at : at + length]
        elif kind == 4:
            del wounded[at:]
        elif kind == 5:
            other = others[int(random.integers(0, len(others)))]
            start = int(random.integers(0, max(1, len(other) - length)))
            wounded[at:at] = other[start : start + length]
        elif kind == 6:
            wounded[at:at] = instructions(random, 3)
        else:
            name = _NAMES[int(random.integers(0, len(_NAMES)))].encode()
            wounded[at : at + len(name)] = name
        if not wounded:
            break
    return bytes(wounded)


def _damaged_inside_zip(data, random):
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(written, "w") as new:
        for member in old.infolist():
            content = old.read(member)
            if member.filename.endswith("data.pkl"):
                content = _wounded(content, random, [content])
            if random.random() < 0.01:
                content = content[:-1]
            method = zipfile.ZIP_DEFLATED if random.random() < 0.01 else zipfile.ZIP_STORED
            new.writestr(member.filename, content, method)
    return written.getvalue()


def instructions(random, count):
    """Pickle instructions with plausible and absurd arguments."""
    parts = []
    for _ in range(count):
        name = _NAMES[int(random.integers(0, len(_NAMES)))].encode()
        number = int(random.choice(_EXTREMES))
        kind = int(random.integers(0, 14))
        if kind < 5:
            plain = b"()}]Ntd0la.esubRQ\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94"
            parts.append(bytes([plain[int(random.integers(0, len(plain)))]]))
        elif kind == 5:
            parts.append(b"X" + struct.pack("<I", len(name)) + name)
        elif kind == 6:
            parts.append(b"\x8c" + bytes([len(name)]) + name)
        elif kind == 7:
            other = _NAMES[int(random.integers(0, len(_NAMES)))].encode()
            parts.append(b"c" + name + b"\n" + other + b"\n")
        elif kind == 8:
            parts.append(b"K" + bytes([number & 0xFF]))
        elif kind == 9:
            parts.append(b"J" + struct.pack("<I", number & 0xFFFFFFFF))
        elif kind == 10:
            parts.append(b"h" + bytes([int(random.integers(0, 8))]))
        elif kind == 11:
            parts.append(b"q" + bytes([int(random.integers(0, 8))]))
        elif kind == 12:
            parts.append(
                b"B" + struct.pack("<I", int(random.choice([0, 4, 16, number]))) + bytes(16)
            )
        else:
            parts.append(bytes([int(random.integers(0, 256))]))
    return b"".join(parts)


def program(random):
    """A made-up pickle."""
    start = b"\x80" + bytes([int(random.integers(2, 6))])
    return start + instructions(random, int(random.integers(1, 60))) + b"."


def outcome(path, data):
    """Read ``data`` as a weights file: "read" or "refused"; any other end is an error."""
    path.write_bytes(data)
    return read_or_refused(path)


def read_or_refused(path):
    """What opening a file or folder comes to; any other end is an error."""
    try:
        opened = open_weights(path)
    except XciteError as error:
        message = str(error)
    else:
        assert all(isinstance(array, np.ndarray) for array in opened.tensors.values())
        json.dumps(opened.metadata.model_dump())
        return "read"
    assert "\n" not in message
    assert len(message) < 2000
    return "refused"
