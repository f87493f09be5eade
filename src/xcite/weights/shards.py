"""Weights in several files: with an index, as Hugging Face's programs write them, or a folder."""

import json
import re
from pathlib import Path

from xcite.errors import XciteError
from xcite.weights.distributed_files import distributed_files

MAX_SHARDS = 1_000
INDEX_LIMIT = 16 * 2**20  # bytes of an index; 3,000 tensors need about 0.3 MB
_PLAIN = re.compile(r"\w[\w.-]*\.(safetensors|bin|pth|pt|pdparams)")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.[a-z]+)", re.ASCII)


def is_shard(path: Path) -> bool:
    """Whether the file's name is that of one shard of several."""
    return _SHARD.fullmatch(path.name) is not None and path.suffix in (".safetensors", ".bin")


def shards_of(path: Path) -> list[Path]:
    """The files that hold what ``path`` stands for: an index, one shard of several, or itself.

    A folder is a distributed checkpoint.

    Raises:
        XciteError: a damaged index, or shards that are not there, naming them.
    """
    if path.is_dir():
        return distributed_files(path)
    if path.name.endswith(".index.json"):
        names = _indexed(path)
    else:
        found = _SHARD.fullmatch(path.name)
        if found is None or not 1 <= int(found[2]) <= int(found[3]) <= MAX_SHARDS:
            return [path]
        count = int(found[3])
        names = [f"{found[1]}-{i:05}-of-{found[3]}{found[4]}" for i in range(1, count + 1)]
    files = [path.with_name(name) for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        which = "" if path not in files else f" is shard {files.index(path) + 1} of {len(files)};"
        raise XciteError(
            f"{path}{which or ':'} beside it is no {', '.join(missing[:3])}{more}; put all shards "
            "into one folder"
        )
    return files


def _indexed(path: Path) -> list[str]:
    """The names of the files in an index, each once."""
    try:
        if path.stat().st_size > INDEX_LIMIT:
            raise XciteError(f"{path} is larger than an index of weights ({INDEX_LIMIT} bytes)")
        table = json.loads(path.read_bytes())["weight_map"]
        names = sorted(set(table.values()))
    except OSError as error:
        raise XciteError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise XciteError(f"{path} is no index of weights: it has no table weight_map") from error
    plain = all(isinstance(name, str) and _PLAIN.fullmatch(name) for name in names)
    if not plain or not 0 < len(names) <= MAX_SHARDS:
        raise XciteError(f"{path}: its files are not plain names in the same folder")
    return names
