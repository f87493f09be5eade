"""history.jsonl: what a run is, and everything that was done to it.

Its first line names the run, its recipe and its data; every later one a session that went on,
stopped, failed or finished. What was changed since, from which step on, stands under "changes";
what of it makes the result another one is told in words under "altered_recipe", against the recipe
of the checkpoint, and "altered_data".
"""

import json
import time
import uuid
from pathlib import Path
from typing import Any

from xcite import recipe as recipes
from xcite.recipe import Recipe
from xcite.training import json_lines


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

    def recipe(self, digest: str = "") -> Recipe | None:
        """The recipe of a hash, or as last accepted; None for a run of an older Xcite.

        Raises:
            XciteError: the file holds something else.
        """
        known = [row["recipe_hash"] for row in self.rows if _is_text(row, "recipe_hash")]
        wanted = digest or (known[-1] if known else "")
        texts = [
            row["recipe"]
            for row in self.rows
            if _is_text(row, "recipe") and row.get("recipe_hash") == wanted
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

    def last_error(self) -> tuple[str, str]:
        """The last session's error, and the command that goes on in spite of it; "" without one."""
        for row in reversed(self.rows):
            if row.get("event") in ("begun", "resumed"):
                break
            if isinstance(row.get("error"), str):
                return row["error"], row["command"] if _is_text(row, "command") else ""
        return "", ""

    def altered(self) -> list[str]:
        """What made the result another than the recipe alone would give, in the order it was done.

        Each such as "from step 120 on: optim.lr from 0.001 to 0.0005". What was undone by going on
        from an earlier step is left out.
        """
        found: list[tuple[int, str, str]] = []
        for row in self.rows:
            step = row.get("step")
            if row.get("event") != "resumed" or not json_lines.is_count(step):
                continue
            # A recipe is told anew against that of the checkpoint, pictures against the last ones.
            found = [f for f in found if (f[0], f[1] == "altered_recipe") < (step, True)]
            for key in ("altered_recipe", "altered_data"):
                if row.get(key) and _is_text(row, key):
                    found.append((int(row["step"]), key, row[key]))
        return [f"from step {step} on: {text}" for step, _, text in found]

    def _accepted(self, recipe: Recipe, facts: dict[str, str]) -> dict[str, Any]:
        digest, before = recipes.digest(recipe), set(self.recipes)
        self.recipes.add(digest)
        text = {} if digest in before else {"recipe": recipes.dump(recipe)}
        return {"recipe_hash": digest, **text, "data": facts}


def _is_text(row: dict[str, Any], key: str) -> bool:
    return isinstance(row.get(key), str)
