"""Files that are no weights, or weights in a form that is not read: what they are, what to do."""

import re
from collections.abc import Sequence

START = 1024  # bytes of a file that `described` wants to see

_STARTS = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, .h5); save the weights as .safetensors"),
    (b"GGUF", "a GGUF file of a language model, which no XCiT is kept in"),
    (b"\x93NUMPY", "a single NumPy array; save all tensors by name as .safetensors"),
    (b"\xfd7zXZ\x00", "compressed with xz; unpack it first (xz -d)"),
    (b"BZh", "compressed with bzip2; unpack it first (bzip2 -d)"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first (zstd -d)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it and name the weights file in it"),
    (b"Rar!\x1a\x07", "a RAR archive; unpack it and name the weights file in it"),
    (
        b"version https://git-lfs.github.com/spec/",
        "a pointer of Git LFS, not the file itself; run `git lfs pull` in its repository",
    ),
    (b"%PDF-", "a PDF document"),
    (b"\x89PNG\r\n", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
)
_ONNX = re.compile(rb"\x08[\x01-\x20](\x12[\x00-\x7f]|\x1a|\x22|\x3a|\x42)", re.DOTALL)
_OLD_PICKLE = re.compile(rb"\(d|\(l|\(c|\}q|\]q|ccollections\n|cnumpy")
_NO_PROGRAM = "where it was made, save model.state_dict() alone"


def described(start: bytes, name: str) -> str | None:
    """What a file is that begins with these bytes; None where this module does not know it."""
    for beginning, words in _STARTS:
        if start.startswith(beginning):
            return words
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it (tar xf) and name the weights file in it"
    if start[4:8] == b"TFL3":
        return f"a TensorFlow Lite program, not weights; {_NO_PROGRAM}"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<script")):
        return (
            "a web page, not weights: the address answered with a page (a login, an error); "
            "fetch the file itself"
        )
    if text.startswith(b"<?xml"):
        return "an XML text (an answer of a file server, or a program of OpenVINO), not weights"
    if _ONNX.match(start) or name.endswith(".onnx"):
        return f"an ONNX program, whose weights have lost their names; {_NO_PROGRAM}"
    if name.endswith((".pdmodel", ".pdiparams")):
        return f"a program of Paddle Inference, not weights; {_NO_PROGRAM} (.pdparams)"
    if re.search(r"\.ckpt\.(index|meta|data-\d+-of-\d+)$|^saved_model\.pb$", name):
        return "part of a TensorFlow checkpoint; save the weights as .safetensors"
    if _OLD_PICKLE.match(start):
        return "a pickle of protocol 0 or 1; save it again with protocol 2 or later"
    if text.startswith((b"{", b"[")):
        return "a JSON text without an index of weights files"
    return None


def program_of(names: Sequence[str]) -> str | None:
    """ "torchscript" or "torch.export", whose archive holds files of these names; None: neither."""
    if any(name.endswith("/constants.pkl") for name in names):
        return "torchscript"
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
        return "torch.export"
    return None


def zip_contents(names: Sequence[str]) -> str:
    """What a zip archive is that holds no single `data.pkl`."""
    program = program_of(names)
    if program == "torchscript":
        return (
            "it is a TorchScript archive: a program with weights in it, not weights; where PyTorch "
            "is installed, save torch.jit.load(FILE).state_dict() with torch.save"
        )
    if program == "torch.export":
        return (
            "it is a program of torch.export (.pt2), not weights; where PyTorch is installed, save "
            "torch.export.load(FILE).state_dict with torch.save"
        )
    if any(name.endswith(".npy") for name in names):
        return "it is a NumPy archive (.npz); save the tensors by name as .safetensors"
    if any(name.endswith(("/.metadata", ".distcp")) for name in names):
        return "it is a distributed checkpoint of PyTorch; unpack it and name the folder"
    shown = ", ".join(ascii(name[:60]) for name in names[:3])
    return f"it is a zip archive of other files ({shown}); unpack it and name the weights file"
