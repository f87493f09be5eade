"""What a weights file holds: its parts, each a mapping of names to tensors that still lie in it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xcite.errors import XciteError
from xcite.weights import paddle_files, torch_files
from xcite.weights.pickle_globals import PickleError
from xcite.weights.safetensors_files import read_safetensors
from xcite.weights.stored import StoredTensor

SIZE_LIMIT = 16 * 2**30  # bytes; a training checkpoint of the largest model has about 3 GB

State = dict[str, StoredTensor]

# Key of a checkpoint -> the part it holds.
_LEVELS = {
    "model": "weights", "state_dict": "weights", "params": "weights",
    "model_ema": "ema", "state_dict_ema": "ema", "ema": "ema",
    "student": "student", "teacher": "teacher",
}  # fmt: skip


@dataclass
class Contents:
    """A weights file before translation.

    Attributes:
        container: kind of file, in words.
        parts: "weights", "ema", "student", "teacher": whichever are there.
        texts: safetensors metadata.
        notes: what was left out while reading.
    """

    container: str
    parts: dict[str, State]
    texts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_contents(path: Path) -> Contents:
    """Read a file's structure; its kind is told from its first bytes, never from its name.

    Raises:
        XciteError: unreadable, damaged or hostile.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise XciteError(f"cannot read {path}: {error.strerror or error}") from error
    if not size:
        raise XciteError(f"{path} is empty; fetch it again")
    if size > SIZE_LIMIT:
        raise XciteError(f"{path} has {size} bytes; at most {SIZE_LIMIT} are read")
    try:
        contents = _read(path, start)
        for name, state in contents.parts.items():
            _bounded(state, size, name)
        return contents
    except PickleError as error:
        raise XciteError(f"{path} is refused: {error}") from error
    except (OSError, MemoryError, RecursionError) as error:
        raise XciteError(f"{path} cannot be read: {error or type(error).__name__}") from error


def _bounded(state: State, size: int, name: str) -> None:
    """Tensors may not share bytes: a small file could otherwise grow without limit when read."""
    claimed = sum(tensor.nbytes for tensor in state.values())
    if claimed > size:
        raise PickleError(f"the tensors of {name} claim {claimed} bytes, the file has {size}")


def _read(path: Path, start: bytes) -> Contents:
    if torch_files.is_zip(start):
        return _parts("PyTorch", torch_files.read_torch_zip(path), torch_files.resolve)
    # Before pickles, because one header length in 256 begins with their first byte. A length of
    # more than five bytes is absurd; such a file is refused by what reads the header.
    pickled = start[:1] == b"\x80"
    if start[8:9] == b"{" and (start[5:8] == b"\0\0\0" or not pickled):
        tensors, texts = read_safetensors(path)
        return Contents("safetensors", _checkpoint_parts(tensors), texts)
    if pickled:
        # An older .pth opens with a magic number: PROTO 2, LONG1 of ten bytes.
        if start[2:4] == b"\x8a\x0a":
            loaded = torch_files.read_torch_legacy(path)
            return _parts("PyTorch (before 1.6)", loaded, torch_files.resolve)
        return _parts("Paddle", paddle_files.read_paddle(path), paddle_files.resolve)
    raise PickleError("it is neither a .pth, a .pdparams nor a .safetensors file")


def _checkpoint_parts(tensors: State) -> dict[str, State]:
    """Xcite's training state keeps weights/NAME and ema/NAME beside the moments."""
    parts: dict[str, State] = {}
    for part in ("weights", "ema"):
        prefix = f"{part}/"
        inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        if inside:
            parts[part] = inside
    return parts or {"weights": tensors}


def _parts(container: str, loaded: Any, resolve: Callable[[Any], Any]) -> Contents:
    if not isinstance(loaded, dict):
        raise PickleError("it holds no dictionary of tensors")
    contents = Contents(container, {})
    state = _state(loaded, resolve)
    if state:
        _split(contents, "weights", state)
    for key, part in _LEVELS.items():
        level = loaded.get(key)
        if not state and isinstance(level, dict):
            inner = _state(level, resolve)
            if inner and part not in contents.parts:
                _split(contents, part, inner)
    if not contents.parts:
        raise PickleError("no weights were found in it")
    return contents


def _state(level: Mapping[Any, Any], resolve: Callable[[Any], Any]) -> State:
    state = {}
    for name, value in level.items():
        tensor = resolve(value)
        if isinstance(name, str) and isinstance(tensor, StoredTensor):
            state[name] = tensor
    return state


def _split(contents: Contents, part: str, state: State) -> None:
    """Remove the prefixes that wrappers add, and separate student and teacher."""
    if all(name.startswith("module.") for name in state):  # DistributedDataParallel
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    student, teacher = (
        {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        for prefix in ("Student.", "Teacher.")
    )
    if student and len(student) + len(teacher) == len(state):
        if part == "ema":
            contents.parts["ema"] = student
            return
        contents.parts["student"] = student
        if teacher:
            contents.parts["teacher"] = teacher
        return
    if "backbone.cls_token" in state and any(n.endswith(".running_mean") for n in state):
        # DINO's full checkpoints: a backbone and a projection head that no model of ours has.
        state = {
            n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")
        }
        contents.notes.append("the projection head of self-supervised training is left out")
    contents.parts[part] = state
