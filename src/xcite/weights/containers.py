"""What a weights file holds: its parts, each a mapping of names to tensors that still lie in it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xcite.errors import XciteError
from xcite.weights import foreign_files, paddle_files, torch_files
from xcite.weights.distributed_files import read_distributed
from xcite.weights.hub_config import HubConfig, config_beside
from xcite.weights.packed_files import Unpacked, is_gzip, unpacked_gzip, unpacked_zip
from xcite.weights.parts import State, find_parts
from xcite.weights.pickle_globals import PickleError
from xcite.weights.safetensors_files import read_safetensors
from xcite.weights.shards import shards_of

METADATA_KEY = "xcite"  # key of the metadata of Xcite's own files
SIZE_LIMIT = 16 * 2**30  # bytes; a training checkpoint of the largest model has about 3 GB
_SHOWN = 12  # names of objects or tensors in one note


@dataclass
class Contents:
    """A weights file before translation.

    Attributes:
        container: kind of file, in words.
        parts: "weights", "ema", "student", "teacher", or the path of one more: whichever are there.
        beside: of each part, the tensors around it that belong to no model.
        texts: safetensors metadata.
        notes: what was left out while reading.
        files: the files that hold it: several where it is cut into shards.
        config: what a configuration beside the file says.
        unpacked: keeps the unpacked copy of a packed file as long as its tensors are read.
    """

    container: str
    parts: dict[str, State]
    beside: dict[str, State] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    config: HubConfig | None = None
    unpacked: list[Unpacked] = field(default_factory=list)


@dataclass
class _Loaded:
    """One file's objects, tensors still as its own reader's records."""

    container: str
    value: Any
    resolve: Callable[[Any], Any]
    aside: Counter[str]
    size: int
    texts: dict[str, str] = field(default_factory=dict)
    unpacked: Unpacked | None = None


def read_contents(path: Path) -> Contents:
    """Read a file's structure; its kind is told from its first bytes, never from its name.

    A shard, or the index of shards, stands for all of them; a folder is a distributed checkpoint.

    Raises:
        XciteError: unreadable, damaged or hostile.
    """
    try:
        files = shards_of(path)
        whole = path.is_dir()
        contents = _found([_load_folder(path)] if whole else [_load(file) for file in files])
        contents.files = files
        if whole:
            contents.notes.append(f"read from the distributed checkpoint {path.name}")
        contents.config = config_beside(path)
        return contents
    except PickleError as error:
        raise XciteError(f"{path} is refused: {error}") from error
    except (OSError, MemoryError, RecursionError) as error:
        raise XciteError(f"{path} cannot be read: {error or type(error).__name__}") from error


def _load(path: Path) -> _Loaded:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(foreign_files.START)
    except OSError as error:
        raise XciteError(f"cannot read {path}: {error.strerror or error}") from error
    if not size:
        raise XciteError(f"{path} is empty; fetch it again")
    _refuse_large(path, size)
    if is_gzip(start):
        return _load_unpacked(unpacked_gzip(path), "compressed with gzip")
    try:
        return _load_plain(path, start, size)
    except torch_files.OtherArchive:
        inner = unpacked_zip(path)
        if inner is None:
            raise
        return _load_unpacked(inner, "in a zip archive")


def _load_folder(path: Path) -> _Loaded:
    value, size = read_distributed(path)
    _refuse_large(path, size)
    return _Loaded("PyTorch, distributed", value, lambda tensor: tensor, Counter(), size)


def _refuse_large(path: Path, size: int) -> None:
    if size > SIZE_LIMIT:
        raise XciteError(f"{path} has {size} bytes; at most {SIZE_LIMIT} are read")


def _load_unpacked(inner: Unpacked, how: str) -> _Loaded:
    with inner.path.open("rb") as file:
        start = file.read(foreign_files.START)
    if is_gzip(start):
        raise PickleError("it is packed more than once; unpack it first")
    loaded = _load_plain(inner.path, start, inner.size)
    loaded.container += f", {how}"
    loaded.unpacked = inner
    return loaded


def _load_plain(path: Path, start: bytes, size: int) -> _Loaded:
    aside: Counter[str] = Counter()
    if torch_files.is_zip(start):
        value = torch_files.read_torch_zip(path, aside)
        return _Loaded("PyTorch", value, torch_files.resolve, aside, size)
    # Before pickles, because one header length in 256 begins with their first byte. A length of
    # more than five bytes is absurd; such a file is refused by what reads the header.
    pickled = start[:1] == b"\x80"
    if start[8:9] == b"{" and (start[5:8] == b"\0\0\0" or not pickled):
        tensors, texts = read_safetensors(path)
        return _Loaded("safetensors", tensors, lambda tensor: tensor, aside, size, texts)
    # An older .pth opens with a magic number: PROTO 2, LONG1 of ten bytes.
    if pickled and start[2:4] == b"\x8a\x0a":
        value = torch_files.read_torch_legacy(path, aside)
        return _Loaded("PyTorch (before 1.6)", value, torch_files.resolve, aside, size)
    if pickled:
        value = paddle_files.read_paddle(path, aside)
        return _Loaded("Paddle", value, paddle_files.resolve, aside, size)
    known = foreign_files.described(start, path.name)
    if known is not None:
        raise PickleError(f"it is {known}")
    raise PickleError("it is neither a .pth, a .pdparams nor a .safetensors file")


def _found(loaded: list[_Loaded]) -> Contents:
    """The models of a file, or of all shards together."""
    first, container = loaded[0], loaded[0].container
    if len(loaded) > 1:
        container += f", {len(loaded)} shards"
    contents = Contents(container, {}, texts=first.texts)
    contents.unpacked = [file.unpacked for file in loaded if file.unpacked is not None]
    value = first.value if len(loaded) == 1 else _joined(loaded)
    own = _checkpoint_parts(value) if container == "safetensors" else {}
    if own or METADATA_KEY in first.texts:
        contents.parts = own or {"weights": value}
    else:
        found = find_parts(value, first.resolve)
        contents.parts = {name: part.state for name, part in found.items()}
        contents.beside = {name: part.beside for name, part in found.items()}
    size = sum(file.size for file in loaded)
    for name, state in contents.parts.items():
        _bounded(state, size, name)
    aside = sum((file.aside for file in loaded), Counter())
    aside.update({name: 0 for file in loaded for name in file.aside})
    if aside:
        kinds = [f"{name} ({count})" if count > 1 else name for name, count in aside.items()]
        contents.notes.append(f"left aside, only their names were read: {listed(kinds)}")
    return contents


def _joined(loaded: list[_Loaded]) -> dict[str, Any]:
    """All shards' tensors by name."""
    whole: dict[str, Any] = {}
    for shard in loaded:
        if not isinstance(shard.value, dict) or shard.container != loaded[0].container:
            raise PickleError("the shards are not of one kind")
        twice = whole.keys() & shard.value.keys()
        if twice:
            raise PickleError(f"two shards hold {listed([str(name) for name in twice])}")
        whole |= shard.value
    return whole


def _bounded(state: State, size: int, name: str) -> None:
    """Tensors may not share bytes: a small file could otherwise grow without limit when read."""
    claimed = sum(tensor.nbytes for tensor in state.values())
    if claimed > size:
        raise PickleError(f"the tensors of {name} claim {claimed} bytes, the file has {size}")


def _checkpoint_parts(tensors: State) -> dict[str, State]:
    """Xcite's training state keeps weights/NAME and ema/NAME beside the moments."""
    parts: dict[str, State] = {}
    for part in ("weights", "ema"):
        prefix = f"{part}/"
        inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        if inside:
            parts[part] = inside
    return parts


def listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(ascii(name[:80])[1:-1] for name in names[:_SHOWN]) + more
