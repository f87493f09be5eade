"""Tar archives, read in place."""

import os
from collections.abc import Iterable, Sequence

import numpy as np

from xcite.data.decoding import SUFFIXES
from xcite.data.sources.source import Listed, read_file, state
from xcite.data.tar_members import tar_members
from xcite.errors import XciteError


class TarShards(Listed):
    """Uncompressed tar archives, read in place by offset; the class is the member's folder.

    Nothing is ever extracted, so member names are only names.
    """

    def __init__(
        self,
        spec: str,
        shards: Sequence[str],
        classes: list[str] | None,
        outside_root: bool = False,
    ) -> None:
        self._shards = [os.path.abspath(shard) for shard in shards]
        self._states = [state(shard) for shard in self._shards]
        names: list[str] = []
        found: list[str] = []
        places: list[tuple[int, int, int]] = []
        for shard, path in enumerate(self._shards):
            for member, offset, size in tar_members(path):
                folder, _, file = member.rpartition("/")
                if file.startswith(".") or not file.lower().endswith(SUFFIXES):
                    continue
                if not outside_root and (member.startswith("/") or ".." in member.split("/")):
                    raise XciteError(
                        f"{path}: the name {member!r} leads out of the archive; if you trust it, "
                        "set data.outside_root to true"
                    )
                class_name = folder.rpartition("/")[2]
                if class_name in ("", ".", ".."):
                    raise XciteError(
                        f"{path}: {member!r} lies in no class folder; "
                        "members must be named <class>/<picture>"
                    )
                names.append(member)
                found.append(class_name)
                places.append((shard, offset, size))
        super().__init__(names, found, classes, spec)
        self._places = np.array(places, np.int64).reshape(-1, 3)

    def read(self, index: int) -> bytes:
        shard, offset, size = (int(value) for value in self._places[index])
        data = read_file(self._shards[shard], offset, size)
        if len(data) != size:
            raise XciteError(f"{self.name(index)}: the archive has become shorter since listing")
        if state(self._shards[shard]) != self._states[shard]:
            raise XciteError(f"{self.name(index)}: the archive has changed since it was listed")
        return data

    def name(self, index: int) -> str:
        return f"{self._shards[int(self._places[index, 0])]}:{self._names[index]}"

    def files(self) -> Iterable[str]:
        return self._shards
