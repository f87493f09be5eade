"""What may differ when a run goes on: freely, only aloud, or never."""

from collections.abc import Mapping
from typing import Any

from xcite.errors import XciteError
from xcite.recipe import Recipe

# These change where and how fast a run goes or what it does about trouble, not what it computes;
# whether pictures and classes are still the same is asked beside this.
FREE = {
    "data": (
        "train",
        "validation",
        "classes",
        "root",
        "outside_root",
        "columns",
        "workers",
        "worker_timeout",
        "prefetch",
        "on_error",
        "skip_limit",
        "max_pixels",
    ),
    "init": ("weights",),
    "distill": ("teacher", "cache", "teacher_engine"),
    "run": (
        "engine",
        "device",
        "tune",
        "choices",
        "keep",
        "checkpoint_every",
        "checkpoint_minutes",
        "log_every",
        "process_timeout",
        "record_views",
        "tensorboard",
        "activation_checkpointing",
    ),
}
# With these another state, or another order of pictures, would belong to the run.
NEVER: dict[str, tuple[str, ...] | None] = {
    "model": None,  # all of it
    "init": ("dialect", "reset_head", "adapt_channels", "freeze_patch_embed"),
    "data": ("repeats", "holdout"),
}

# A run that was killed before it began has not settled this yet.
UNSETTLED = {"run.precision": "auto"}

Changes = dict[str, tuple[Any, Any]]


def changes(before: Recipe, after: Recipe) -> Changes:
    """Key to (old, new) of everything that differs, such as {"optim.lr": (0.001, 0.0005)}."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    return {
        f"{section}.{key}": (old[section].get(key), new[section].get(key))
        for section in new
        for key in {**old[section], **new[section]}
        if old[section].get(key) != new[section].get(key)
        and UNSETTLED.get(f"{section}.{key}", new) != old[section].get(key)
    }


def loud(changed: Changes) -> Changes:
    """Those that make the result another one."""
    return {name: both for name, both in changed.items() if not _among(name, FREE)}


def check(changed: Changes, *, allowed: bool) -> None:
    """Refuse changes that a resumed run must not have.

    Args:
        allowed: whether the user has allowed those that make the result another one.

    Raises:
        XciteError: with every such key and both values.
    """
    refused = loud(changed)
    never = {name: both for name, both in refused.items() if _among(name, NEVER)}
    if not refused or (allowed and not never):
        return
    shown = ", ".join(
        f"{name} is {old} in this run and would be {new}"
        for name, (old, new) in (never or refused).items()
    )
    anew = "start a new run with init.weights set to this one"
    remedy = anew if never else f"allow it with --allow-changes, or {anew}"
    raise XciteError(f"{shown}; the result would be another: {remedy}")


def in_words(changed: Changes) -> str:
    """The changes in one line."""
    return ", ".join(f"{name} from {old} to {new}" for name, (old, new) in changed.items())


def _among(name: str, rules: Mapping[str, tuple[str, ...] | None]) -> bool:
    section, _, key = name.partition(".")
    return section in rules and (rules[section] is None or key in (rules[section] or ()))
