"""The portable form of a training state: "SECTION/NAME" to arrays, canonical names and shapes."""

from collections.abc import Mapping

import numpy as np

from xcite.canonical import Weights
from xcite.errors import XciteError


def pack(steps: int, sections: Mapping[str, Mapping[str, np.ndarray]]) -> Weights:
    """One flat mapping of all sections, and "step"."""
    state = {
        f"{section}/{name}": array
        for section, arrays in sections.items()
        for name, array in arrays.items()
    }
    return {**state, "step": np.array(steps, np.int64)}


def section(state: Mapping[str, np.ndarray], name: str) -> Weights:
    """The arrays of one section."""
    prefix = f"{name}/"
    return {key.removeprefix(prefix): a for key, a in state.items() if key.startswith(prefix)}


def optimizer_state(
    state: Mapping[str, np.ndarray], like: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Weights]:
    """The optimiser's sections, with the names and shapes of ``like``.

    Raises:
        XciteError: an array is missing or misshapen.
    """
    found = {}
    for name, own in like.items():
        arrays = section(state, name)
        wrong = [n for n, a in own.items() if n not in arrays or arrays[n].shape != a.shape]
        if wrong:
            raise XciteError(
                f"the checkpoint has no {name} that fits {wrong[0]}"
                f"{f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''}; it was written for "
                "another model or other frozen parts: start a new run from its weights instead"
            )
        found[name] = {n: arrays[n] for n in own}
    return found


def steps(state: Mapping[str, np.ndarray]) -> int:
    """Optimiser steps done.

    Raises:
        XciteError: not a training state.
    """
    if "step" not in state:
        raise XciteError("the checkpoint holds no optimiser step: it is not a training checkpoint")
    return int(state["step"])
