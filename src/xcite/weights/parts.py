"""Which models a file holds, and where: found from the tensors' names, not from a list of wrappers.

Every model has a tensor by which it is known (`dialects.anchors`), such as ``cls_token``. What
stands before it, ``_orig_mod.module.`` or ``student.backbone.``, is the prefix of that model. What
lies outside of every prefix belongs to no model: a loss, a metric, a counter.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from xcite.weights import dialects
from xcite.weights.inert_objects import Inert
from xcite.weights.pickle_globals import PickleError
from xcite.weights.stored import StoredTensor, no_tensor

MAX_DEPTH = 8  # of dictionaries in dictionaries
MAX_MODELS = 16
MAX_TENSORS = 8_192  # in one dictionary; the largest model has 715, and may have an average beside

ROLES = ("weights", "ema", "student", "teacher")

State = dict[str, StoredTensor]
Path = tuple[str, ...]

# Keys of a checkpoint that say "this is the model", best first, where several hold one.
_USUAL = ("model", "state_dict", "params", "model_state_dict", "weights", "net")
# Words of a key or prefix that say which model it is, the first that fits.
_ROLES = (
    ("teacher", ("teacher", "momentum", "target")),
    ("ema", ("ema", "averaged", "average", "avg", "swa", "shadow")),
    ("student", ("student",)),
)


@dataclass
class Part:
    """One model of a file.

    Attributes:
        path: keys and prefix that lead to it.
        state: its tensors, without the prefix.
        beside: tensors of the same dictionary that lie outside of every model.
    """

    path: Path
    state: State
    beside: State = field(default_factory=dict)

    @property
    def role(self) -> str:
        """ "weights", "ema", "student" or "teacher"."""
        words = {word for piece in self.path for word in _words(piece)}
        return next((role for role, known in _ROLES if words.intersection(known)), "weights")


def find_parts(loaded: Any, resolve: Callable[[Any], Any]) -> dict[str, Part]:
    """Every model in nested dictionaries, by what it is: "weights", "ema", "student", "teacher".

    Of several with one role the usual key counts, then the outermost; the others are called by
    their path. Where no model is recognised, the largest set of tensors is given as "weights".

    Args:
        resolve: from a value of the file to a `StoredTensor`, an `Inert`, or anything else.

    Raises:
        PickleError: no tensors at all, or more models than any checkpoint has.
    """
    level = _level(loaded)
    if level is None:
        raise PickleError(_not_a_dictionary(loaded))
    sets = list(_sets(level, resolve))
    found = [part for path, state in sets for part in split(state, path)]
    if len(found) > MAX_MODELS:
        raise PickleError(f"it holds {len(found)} models; at most {MAX_MODELS} are told apart")
    if not found:
        if not sets:
            raise PickleError(_nothing(level))
        path, state = max(sets, key=lambda entry: len(entry[1]))
        found = [Part(path, state)]
    parts: dict[str, Part] = {}
    for part in sorted(found, key=_rank):
        name = part.role
        if name in parts:
            name = ".".join(part.path) or "unnamed"
        parts.setdefault(name, part)
    order = [*(role for role in ROLES if role in parts), *(n for n in parts if n not in ROLES)]
    return {name: parts[name] for name in order}


def _rank(part: Part) -> tuple[int, int]:
    usual = [_USUAL.index(piece) for piece in part.path if piece in _USUAL]
    return min(usual, default=len(_USUAL)), len(part.path)


def _words(piece: str) -> list[str]:
    """The words of a key: "stateDict_ema" is state, dict, ema."""
    return re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", piece).lower())


def _sets(loaded: dict[Any, Any], resolve: Callable[[Any], Any]) -> Iterator[tuple[Path, State]]:
    """Every dictionary that holds tensors, with the keys that lead to it, outermost first."""
    waiting: list[tuple[Path, dict[Any, Any]]] = [((), loaded)]
    seen = {id(loaded)}
    for path, level in waiting:  # grows while it is walked
        state: State = {}
        others: State = {}
        for name, value in level.items():
            resolved = resolve(value)
            if isinstance(resolved, StoredTensor) and isinstance(name, str):
                state[name] = resolved
            elif isinstance(resolved, Inert) and isinstance(name, str):
                others[name] = no_tensor(resolved.name)
            elif id(resolved) not in seen and len(path) < MAX_DEPTH:
                inner = _level(resolved)
                if inner is not None:
                    seen.add(id(resolved))
                    waiting.append(((*path, str(name)[:80]), inner))
        if len(state) + len(others) > MAX_TENSORS:
            raise PickleError(f"it holds {len(state)} tensors in one place, as no checkpoint does")
        if state:
            yield path, state | others


def _level(value: Any) -> dict[Any, Any] | None:
    """A dictionary, or a short list or tuple as one: (state dict, epoch) is saved by hand."""
    if isinstance(value, list | tuple) and len(value) <= MAX_MODELS:
        return {str(i): item for i, item in enumerate(value)}
    return value if isinstance(value, dict) else None


def split(state: Mapping[str, StoredTensor], path: Path = ()) -> list[Part]:
    """The models in one set of tensors, longest prefix first."""
    prefixes = _prefixes(state)
    if prefixes == [""]:
        return [Part(path, dict(state))]
    states: dict[str, State] = {prefix: {} for prefix in prefixes}
    beside: State = {}
    for name, tensor in state.items():
        owner = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if owner is None:
            beside[name] = tensor
        else:
            states[owner][name.removeprefix(owner)] = tensor
    return [
        Part((*path, *prefix.removesuffix(".").split(".")) if prefix else path, inside, beside)
        for prefix, inside in states.items()
    ]


def _prefixes(state: Mapping[str, StoredTensor]) -> list[str]:
    """The prefix of every model that is recognised, longest first.

    One tensor may be the sign of two dialects (PASSL's ``backbone.cls_token`` is PaddleClas'
    ``cls_token`` in a wrapper): the reading counts that explains more names, then the shorter
    prefix.
    """
    readings: dict[str, list[str]] = {}  # name of the telling tensor -> prefixes
    anchors = dialects.anchors()
    for name in state:
        if name.endswith(anchors):
            readings[name] = [
                name.removesuffix(anchor)
                for anchor in anchors
                if name == anchor or name.endswith(f".{anchor}")
            ]
    if len(readings) > MAX_MODELS:
        raise PickleError(f"it holds the signs of {len(readings)} models")
    chosen = set()
    for prefixes in readings.values():
        fitting = []
        for prefix in prefixes:
            names = [name.removeprefix(prefix) for name in state if name.startswith(prefix)]
            known = dialects.recognise(names)
            if known is not None:
                count = dialects.explained(names, *known) if len(prefixes) > 1 else 0
                fitting.append((count, -len(prefix), prefix))
        if fitting:
            chosen.add(max(fitting)[2])
    return sorted(chosen, key=len, reverse=True)


def _not_a_dictionary(loaded: Any) -> str:
    if isinstance(loaded, Inert):
        return (
            f"it is a whole pickled object, {loaded.name[:80]!a}: a program, not weights; where it "
            "was made, save model.state_dict() alone"
        )
    return "it holds no dictionary of tensors; save model.state_dict()"


def _nothing(loaded: dict[Any, Any]) -> str:
    objects = {
        str(key)[:40]: value.name for key, value in loaded.items() if isinstance(value, Inert)
    }
    if not objects:
        return "no weights were found in it: it holds no tensors by name"
    key, name = next(iter(objects.items()))
    return (
        f"no weights were found in it: {key!a} is a pickled object, {name[:80]!a}; where it was "
        "made, save model.state_dict() alone"
    )
