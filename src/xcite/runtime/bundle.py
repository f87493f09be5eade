"""The bundle: one folder with everything that serving a model takes, and proof that it is whole.

``bundle.json`` describes the files beside it. Every file is listed with its SHA-256, and the
description carries a seal over itself, so that an altered, missing or exchanged file is refused
instead of being run. What counts is the content: a listed file may be a link (hub caches, mounted
volumes), and files that are not listed are ignored, because no runtime opens them. The seal tells
accidents and mix-ups, not an attacker who recomputes it: for that, compare `BundleInfo.seal` with a
value kept elsewhere.
"""

import hashlib
import json
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xcite.control_characters import writable_json
from xcite.errors import XciteError
from xcite.families import Architecture
from xcite.preprocessing import Preprocessing
from xcite.runtime.external_data import external_files
from xcite.weights.metadata import Metadata
from xcite.whole_files import whole_folder

DESCRIPTION = "bundle.json"
DESCRIPTION_LIMIT = 16 * 2**20  # bytes; 22,000 long class names stay far below
FORMAT_VERSION = 1
# Paddle's is called as PaddleClas' predictor asks for it.
PROGRAMS = {"onnx": "model.onnx", "openvino": "model.xml", "paddle": "inference.json"}
_EARLIER = {"paddle": "model.json"}  # what older versions called it
PADDLECLAS = "inference.yml"  # beside it, for PaddleClas: not under the seal, people edit it
_BESIDE = {
    ".xml": ".bin",
    ".json": ".pdiparams",
    ".pdmodel": ".pdiparams",
}  # a program's suffix: of its weights

Format = Literal["onnx", "openvino", "paddle"]
Side = Annotated[int, Field(ge=1, le=8192)]
Precision = Literal["f32", "f16", "bf16", "int8"]
Runtime = Literal["openvino", "onnxruntime", "paddle"]


class Chosen(BaseModel):
    """Why a bundle is in this format and precision, where the machine chose.

    Attributes:
        runtime: on which it was the fastest; a `Predictor` takes it where it is installed.
        images_per_second: median of turns of all that were tried.
        batch: pictures at a time.
        tried: the ways that were looked at, each with its "format", "precision" and "runtime", and
            with "images_per_second" or why it was "left_out".
        machine: processor, its model and instructions, cores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime: Runtime
    images_per_second: float
    batch: int
    tried: list[dict[str, Any]]
    machine: dict[str, Any]


class BundleInfo(BaseModel):
    """What ``bundle.json`` holds.

    Attributes:
        size: height and width in pixels the graph was made for; None when both are dynamic.
        class_names: one name per logit; empty when the weights named none.
        outputs: "logits" (B, K), or "embedding" (B, d) of a model without classifier; where the
            format allows "class_attention" (B, layers, heads, 1 + N): CLS over CLS and the N
            patches of the row-major grid; in Paddle's format "probabilities" (B, K) too.
        agreement: how far the graph is from the reference, see `xcite.export.agreement`.
        accuracy: top-1 in percent before and after export, where validation data were given.
        chosen: what against what, where the machine chose; bundles without it do not write it.
        files: graph files and their SHA-256.
        seal: SHA-256 over the other fields.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = FORMAT_VERSION
    format: Format
    precision: Precision
    model: str | None = None
    architecture: dict[str, Any]
    size: tuple[Side, Side] | None
    preprocessing: Preprocessing
    class_names: list[str] = Field(default_factory=list)
    outputs: list[str]
    agreement: dict[str, Any]
    accuracy: dict[str, Any] | None = None
    chosen: Chosen | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    seal: str = ""

    def built(self) -> Architecture:
        """The architecture, as the engines take it.

        Raises:
            XciteError: unknown kind or fields.
        """
        fields = dict(self.architecture)
        kind = fields.pop("kind", None)
        try:
            built = Metadata(architecture=fields).described_architecture()
        except (XciteError, TypeError, ValueError, ArithmeticError) as error:
            raise XciteError(f"the bundle's architecture cannot be read: {error}") from error
        if built is None or built.kind != kind:
            raise XciteError(f"the bundle's architecture cannot be read: it is no {kind!a}")
        return built

    @property
    def answer(self) -> str:
        """The output that counts: "logits", or "embedding" of a model without classifier."""
        return "embedding" if "embedding" in self.outputs else "logits"

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an input of that many pixels."""
        return self.built().grid(height, width)

    def sealed(self, files: dict[str, str]) -> "BundleInfo":
        """A copy that lists ``files`` and carries the matching seal."""
        unsealed = self.model_copy(update={"files": dict(sorted(files.items())), "seal": ""})
        return unsealed.model_copy(update={"seal": unsealed.digest()})

    def written(self) -> dict[str, Any]:
        """What ``bundle.json`` holds: older versions know no `chosen`, nor have their seals it."""
        return self.model_dump(mode="json", exclude={"chosen"} if self.chosen is None else None)

    def digest(self) -> str:
        """SHA-256 over what is written but the seal, as compact JSON with sorted keys."""
        fields = self.written()
        del fields["seal"]
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(writable_json(text).encode()).hexdigest()


def describe(architecture: Architecture) -> dict[str, Any]:
    """The architecture as plain data; `BundleInfo.built` reads it back."""
    return {"kind": architecture.kind, **architecture.fields()}


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether a folder says that it is a bundle; `read_info` finds out."""
    return (Path(path) / DESCRIPTION).is_file()


def bundle_folder(path: str | os.PathLike[str]) -> Path | None:
    """The bundle that is meant by its folder or by one of the files in it; None for other paths.

    Raises:
        XciteError: a program without a bundle's description beside it.
    """
    place = Path(path)
    if is_bundle(place):
        return place
    if not place.is_file():
        return None
    if is_bundle(place.parent) and place.name in _own(place.parent) | _PROGRAM_FILES:
        return place.parent
    if place.suffix in (".onnx", ".xml"):
        raise XciteError(
            f"{path} is a program without the {DESCRIPTION} of a bundle beside it; give the folder "
            "that `xcite export` wrote"
        )
    return None


def require_classes(info: BundleInfo, bundle: Path) -> None:
    """Refuse a bundle of embeddings where classes are asked for.

    Raises:
        XciteError: the bundle, and what it is for.
    """
    if info.answer == "embedding":
        raise XciteError(
            f"bundle {bundle} gives embeddings of {info.built().num_features} numbers, no classes; "
            "in Python, Predictor.embed gives them"
        )


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def whole_bundle(path: str | os.PathLike[str]) -> AbstractContextManager[Path]:
    """Yield an empty folder that becomes the bundle ``path``, see `whole_folder`."""

    def own(folder: Path) -> set[str] | None:
        return _own(folder) if is_bundle(folder) else None

    return whole_folder(path, own, "a bundle")


def _own(folder: Path) -> set[str]:
    """Names of a bundle's own files, as far as it can be told."""
    try:
        path = folder / DESCRIPTION
        if path.stat().st_size > DESCRIPTION_LIMIT:
            return {DESCRIPTION}
        return {DESCRIPTION, PADDLECLAS, *json.loads(path.read_text("utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {DESCRIPTION}


def seal_folder(folder: Path, info: BundleInfo) -> BundleInfo:
    """Write ``bundle.json`` for the files that are in ``folder``; returns what was written."""
    own = (path for path in folder.iterdir() if path.name not in (DESCRIPTION, PADDLECLAS))
    files = {path.name: checksum(path) for path in own}
    sealed = info.sealed(files)
    text = json.dumps(sealed.written(), indent=2, ensure_ascii=False)
    with (folder / DESCRIPTION).open("w", encoding="utf-8") as stream:
        stream.write(writable_json(text) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    return sealed


def read_info(folder: str | os.PathLike[str], *, verify: bool = True) -> BundleInfo:
    """The description of a bundle, after checking every file against it.

    Raises:
        XciteError: not a bundle; altered, missing or mixed-up files; a program that would open
            files outside the bundle.
    """
    root = Path(folder)
    path = root / DESCRIPTION
    if not is_bundle(root):
        raise XciteError(f"{root} is not a bundle (no {DESCRIPTION}); make one with `xcite export`")
    if path.stat().st_size > DESCRIPTION_LIMIT:
        raise XciteError(f"{path} is larger than {DESCRIPTION_LIMIT // 2**20} MiB; it is not ours")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = data.get("version") if isinstance(data, dict) else None
        if found != FORMAT_VERSION:
            raise XciteError(
                f"{path} has version {found!r}; this xcite reads {FORMAT_VERSION}: export again"
            )
        info = BundleInfo.model_validate(data)
    except (ValueError, RecursionError) as error:  # ValidationError and JSON errors are ValueErrors
        line = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise XciteError(f"{path} cannot be read: {line}; export again") from error
    if info.digest() != info.seal:
        raise XciteError(f"{path} was altered after the export (wrong seal); export again")
    if verify:
        _verify(root, info)
    return info


def _verify(root: Path, info: BundleInfo) -> None:
    for name in info.files:
        if Path(name).name != name or name in (".", "..", DESCRIPTION) or "\\" in name:
            raise XciteError(f"{root / DESCRIPTION} names a file outside the bundle: {name!r}")
    for name, expected in info.files.items():
        path = root / name
        try:
            found = checksum(path)
        except FileNotFoundError as error:
            raise XciteError(f"bundle {root} lacks {name}; export again") from error
        except OSError as error:
            raise XciteError(f"cannot read {path}: {error.strerror or error}") from error
        if found != expected:
            raise XciteError(f"{path} was altered or belongs to another bundle; export again")
        outside = sorted(_opened(path) - set(info.files))
        if outside:
            raise XciteError(
                f"{path} would open {outside[0]!a}, which the bundle does not hold; do not use it"
            )


def program_files(program: Path) -> set[str]:
    """Names of the files that a runtime opens, unasked, for a program."""
    beside = _BESIDE.get(program.suffix)
    return {program.name} | ({program.with_suffix(beside).name} if beside else set())


_PROGRAM_FILES = {
    file for name in (*PROGRAMS.values(), *_EARLIER.values()) for file in program_files(Path(name))
}


def sealed_program(folder: Path, info: BundleInfo) -> Path:
    """The program of a bundle whose description is ``info``.

    Raises:
        XciteError: it, or its weights, are not under the seal.
    """
    name = PROGRAMS[info.format]
    if name not in info.files and (earlier := _EARLIER.get(info.format)) in info.files:
        name = str(earlier)
    program = folder / name
    missing = sorted(program_files(program) - set(info.files))
    if missing:
        raise XciteError(f"{folder / DESCRIPTION} does not list {', '.join(missing)}; export again")
    return program


def _opened(program: Path) -> set[str]:
    """Names of other files that a runtime would open because the program says so."""
    if program.suffix == ".onnx":
        return external_files(program)
    if program.suffix == ".xml":
        # OpenVINO's own files include nothing; whatever does was not written by it.
        text = program.read_bytes().lower()
        return {word for word in ("<!doctype", "<!entity", "xi:include") if word.encode() in text}
    return set()
