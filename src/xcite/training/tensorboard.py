"""Scalars for TensorBoard, as an option; needs the ``tensorboard`` package, not TensorFlow."""

import importlib.util
import time
from pathlib import Path
from typing import Any

from xcite.errors import XciteError


def require() -> None:
    """Raise XciteError when TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise XciteError(
            "run.tensorboard needs TensorBoard: pip install 'xcite[tensorboard]', "
            "or set run.tensorboard=false"
        )


class Board:
    """Writes the numbers of metrics rows as event files into ``folder/tensorboard``."""

    def __init__(self, folder: Path) -> None:
        require()
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(folder / "tensorboard"))

    def add(self, row: dict[str, Any]) -> None:
        """Every number of the row under ``kind/name``, at the row's step."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=f"{row['kind']}/{name}", simple_value=float(value))
            for name, value in row.items()
            if name not in ("kind", "step") and isinstance(value, int | float)
        ]
        event = Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values))
        self._writer.add_event(event)

    def close(self) -> None:
        self._writer.close()
