"""What was found to be the fastest here: one readable file per machine, in the user's cache."""

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from xcite.choices import Choices
from xcite.errors import XciteError
from xcite.installed import COMPUTING, version_of
from xcite.machine import usable_cores
from xcite.processor import this_processor
from xcite.regular_files import read_regular
from xcite.tuning.knobs import Work
from xcite.tuning.search import Found
from xcite.user_cache import user_cache
from xcite.whole_files import whole_file


@dataclass(frozen=True)
class Entry:
    """One search's result.

    Attributes:
        work: what was tuned, in words.
        before, after: seconds of a step of the shortened model with the default and the choices.
    """

    work: dict[str, Any]
    choices: Choices
    before: float
    after: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "choices": self.choices.model_dump()}


def profile_file() -> Path | None:
    """This machine's profile, whether it exists or not; None without a cache folder."""
    folder = user_cache("profiles")
    if folder is None:
        return None
    key = json.dumps(machine(), sort_keys=True)
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def machine() -> dict[str, Any]:
    """What times depend on beside the work: processor and cores."""
    processor = this_processor()
    return {
        "processor": processor.name,
        "model": processor.model,
        "instructions": sorted(processor.instructions),
        "cores": usable_cores(),
    }


def look_up(work: Work) -> Choices | None:
    """The choices that were found for just this work on this machine; None if there are none."""
    wanted = described(work)
    found = [entry.choices for entry in entries() if entry.work == wanted]
    return found[-1] if found else None


def entries() -> list[Entry]:
    """All that the profile holds; what is not readable is as good as not there."""
    path = profile_file()
    if path is None:
        return []
    with contextlib.suppress(XciteError, OSError, ValueError, KeyError, TypeError, ValidationError):
        told = json.loads(bytes(read_regular(path)))
        if told["machine"] == machine():
            return [
                Entry(**{**one, "choices": Choices.model_validate(one["choices"])})
                for one in told["entries"]
                if set(one["choices"]) >= set(Choices.model_fields)  # else found without one
            ]
    return []


def keep(work: Work, found: Found) -> Entry:
    """Write what was found, where there is a place for it (`profile_file`)."""
    path = profile_file()
    entry = Entry(described(work), found.choices, found.before, found.after)
    if path is None:
        return entry
    others = [one for one in entries() if one.work != entry.work]
    rows = [one.to_json() for one in [*others, entry]]
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as aside:
            aside.write_text(json.dumps({"machine": machine(), "entries": rows}, indent=1) + "\n")
    return entry


def described(work: Work) -> dict[str, Any]:
    """The work as JSON, with the versions that it is computed by."""
    return {
        "engine": work.engine,
        "version": version_of(*COMPUTING[work.engine]) or "",
        "precision": work.precision,
        "kind": work.kind,
        "attention": work.attention,
        "batch": work.batch,
        "height": work.height,
        "width": work.width,
        # as JSON has it: lists, not tuples
        "architecture": json.loads(json.dumps(asdict(work.architecture))),
    }
