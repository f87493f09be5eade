"""Another process of the run that has ended or cannot be reached, in words."""

import re

from xcite.errors import XciteError
from xcite.processes.environment import Place

# What gloo, NCCL and the frameworks' stores say when a peer is gone.
_SAYINGS = re.compile(
    r"connection (closed|reset|refused)|closed by peer|broken pipe|timed? ?out|timeout|"
    r"no route to host|network is unreachable|socket|gloo|nccl|tcpstore|peer",
    re.IGNORECASE,
)


class ProcessLost(XciteError):
    """Another process of this run has ended or cannot be reached; a new start may go on."""


def lost(error: BaseException) -> ProcessLost | None:
    """What an exchange's error means, if it means that another process is gone."""
    if isinstance(error, XciteError) or not isinstance(error, RuntimeError | OSError | SystemError):
        return None
    said = " ".join(str(error).split())
    if not _SAYINGS.search(said):
        return None
    return ProcessLost(
        "another process of this run has ended or cannot be reached "
        f"({type(error).__name__}: {_essence(said)})"
    )


def not_joined(place: Place, error: BaseException) -> ProcessLost:
    """The processes of the run did not all come to their meeting point."""
    said = " ".join(str(error).split())
    return ProcessLost(
        f"the {place.size} processes of this run did not find each other at {place.meeting} "
        f"({_essence(said)}); see that all are started, that this address can be reached from "
        "every machine, and that nothing else uses the port"
    )


def _essence(said: str) -> str:
    """The last sentence that speaks of the connection, in some hundred characters."""
    parts = [part for part in re.split(r"(?<=[.!])\s|\] ", said) if _SAYINGS.search(part)]
    text = (parts or [said])[-1].replace(";", ",").strip()
    return text if len(text) <= 120 else f"{text[:119]}…"
