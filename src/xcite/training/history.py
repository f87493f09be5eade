"""history.jsonl: what a run is, and everything that was done to it.

Its first line names the run, its recipe and its data; every later one a session that went on,
stopped, failed or finished, with what was changed from which step on.
"""

import hashlib
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from xcite import recipe as recipes
from xcite.data.sources import Source
from xcite.errors import XciteError
from xcite.recipe import Recipe
from xcite.training import json_lines

SAMPLE = 32  # pictures whose content goes into the data's facts

# What a difference in each fact means to people; the times alone may differ, as copies have others.
FACTS = {
    "listing": "names or labels",
    "sizes": "sizes of the files",
    "contents": "contents of the pictures",
}


class History:
    """The history file of a run.

    Attributes:
        run: the run's identity, made when it began; "" for a run of an older Xcite.
        recipes: hashes of every recipe that the run has had.
        facts: of the data, as last accepted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = json_lines.read(path) if path.is_file() else []
        self.run = next((row["run"] for row in self.rows if isinstance(row.get("run"), str)), "")
        self.recipes = {row["recipe_hash"] for row in self.rows if _is_text(row, "recipe_hash")}
        facts = [row["data"] for row in self.rows if isinstance(row.get("data"), dict)]
        self.facts: dict[str, Any] = facts[-1] if facts else {}

    def recipe(self) -> Recipe | None:
        """The recipe as last accepted; None for a run of an older Xcite.

        Raises:
            XciteError: the file holds something else.
        """
        last = [row["recipe_hash"] for row in self.rows if _is_text(row, "recipe_hash")][-1:]
        texts = [
            row["recipe"]
            for row in self.rows
            if _is_text(row, "recipe") and row.get("recipe_hash") in last
        ]
        return recipes.parse(texts[-1], str(self.path)) if texts else None

    def add(self, event: str, step: int, **more: Any) -> None:
        """Record an event after optimiser step ``step`` of the run.

        Raises:
            XciteError: the file cannot be written.
        """
        row = {"event": event, "time": time.strftime("%Y-%m-%d %H:%M:%S%z"), "step": step, **more}
        json_lines.append(self.path, json.dumps(row) + "\n", flush=True)
        self.rows.append(row)

    def begin(self, recipe: Recipe, facts: dict[str, str], step: int = 0, run: str = "") -> None:
        """Record who the run is; ``run`` where a checkpoint knows it already."""
        self.run, self.facts = run or uuid.uuid4().hex, facts
        self.add("begun", step, run=self.run, **self._accepted(recipe, facts))

    def accept(self, recipe: Recipe, facts: dict[str, str], step: int, **more: Any) -> None:
        """Record that the run goes on with a recipe and data that are now its own."""
        self.add("resumed", step, **more, **self._accepted(recipe, facts))

    def _accepted(self, recipe: Recipe, facts: dict[str, str]) -> dict[str, Any]:
        digest, before = recipes.digest(recipe), set(self.recipes)
        self.recipes.add(digest)
        text = {} if digest in before else {"recipe": recipes.dump(recipe)}
        return {"recipe_hash": digest, **text, "data": facts}


def facts_of(source: Source) -> dict[str, str]:
    """Hashes that tell whether pictures are still the same ones.

    "listing": names, labels and classes; "sizes" and "times": of every file; "contents": of
    `SAMPLE` pictures at even distances.
    """
    sizes, times, contents = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    for path in source.files():
        try:
            stat = os.stat(path)
            sizes.update(b"%d " % stat.st_size)
            times.update(b"%d " % stat.st_mtime_ns)
        except OSError:  # reading the picture will say so
            sizes.update(b"- ")
    for index in np.unique(np.linspace(0, len(source) - 1, SAMPLE).astype(int)).tolist():
        try:
            picture = source.read(index)
        except XciteError:
            continue
        contents.update(picture if isinstance(picture, bytes) else picture.tobytes())
    return {
        "listing": source.fingerprint(),
        "sizes": sizes.hexdigest(),
        "times": times.hexdigest(),
        "contents": contents.hexdigest(),
    }


def differing_facts(before: dict[str, Any], now: dict[str, str]) -> list[str]:
    """In words, what is no longer the same about the pictures."""
    return [text for key, text in FACTS.items() if key in before and before[key] != now[key]]


def _is_text(row: dict[str, Any], key: str) -> bool:
    return isinstance(row.get(key), str)
