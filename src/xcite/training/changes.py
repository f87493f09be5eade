"""What may differ when a run goes on: freely, only aloud, or never."""

from typing import Any

from xcite.errors import XciteError
from xcite.recipe import Recipe

# These change where and how fast a run goes or what it does about trouble, not what it computes.
FREE = {
    "data": (
        "train",
        "validation",
        "root",
        "outside_root",
        "columns",
        "workers",
        "worker_timeout",
        "prefetch",
        "on_error",
        "max_pixels",
    ),
    "init": ("weights",),
    "distill": ("teacher", "cache", "teacher_engine"),
    "run": (
        "engine",
        "keep",
        "checkpoint_every",
        "checkpoint_minutes",
        "log_every",
        "tensorboard",
        "activation_checkpointing",
    ),
}
# With these another state or another count of steps would belong to the run.
NEVER = {
    "model": None,  # all of it
    "init": ("dialect", "reset_head", "adapt_channels", "freeze_patch_embed"),
    "data": ("classes", "repeats"),
    "optim": ("batch",),
}

Changes = dict[str, tuple[Any, Any]]


def changes(before: Recipe, after: Recipe) -> Changes:
    """Key to (old, new) of everything that differs, such as {"optim.lr": (0.001, 0.0005)}."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    return {
        f"{section}.{key}": (old[section].get(key), new[section].get(key))
        for section in new
        for key in {**old[section], **new[section]}
        if old[section].get(key) != new[section].get(key)
    }


def check(changed: Changes, *, allowed: bool) -> None:
    """Refuse changes that a resumed run must not have.

    Args:
        allowed: whether the user has allowed those that make the result another one.

    Raises:
        XciteError: with the key and both values.
    """
    for name, (old, new) in changed.items():
        section, _, key = name.partition(".")
        if key in FREE.get(section, ()):
            continue
        never = section in NEVER and (NEVER[section] is None or key in (NEVER[section] or ()))
        if allowed and not never:
            continue
        remedy = (
            "start a new run with init.weights set to this one"
            if never
            else "allow it with --allow-changes, or start a new run with init.weights set to this "
            "one"
        )
        raise XciteError(
            f"{name} is {old} in this run and would be {new}; the result would be another: {remedy}"
        )


def in_words(changed: Changes) -> str:
    """The changes in one line."""
    return ", ".join(f"{name} from {old} to {new}" for name, (old, new) in changed.items())
