"""A training so small that it can be killed and repeated hundreds of times."""

import hashlib
from pathlib import Path

from xcite.training import checkpoint
from xcite.training.run_folder import RunFolder

EPOCHS = 3
# Everything with a state or a draw of its own is on; a checkpoint is written after every step.
SETTINGS = [
    "model.patch_size=8",
    "model.embed_dim=16",
    "model.depth=1",
    "model.num_heads=2",
    "model.cls_attn_layers=1",
    "model.drop_path=0.2",
    "data.workers=1",
    f"optim.epochs={EPOCHS}",
    "optim.batch=128",
    "optim.warmup_epochs=1",
    "optim.ema=0.9",
    "run.log_every=1",
    "run.keep=1",
    "run.checkpoint_minutes=1e-6",
]


def fingerprint(folder: Path) -> dict[str, str]:
    """Hashes of everything that a run is for: tensors, position, metrics but for the clock."""
    run = RunFolder(folder)
    found = {}
    for path in (run.checkpoint, run.numbered(EPOCHS)):
        saved = checkpoint.load(path)
        digest = hashlib.sha256()
        for name in sorted(saved.state):
            digest.update(name.encode() + saved.state[name].tobytes())
        found[path.name] = digest.hexdigest()
        found[f"{path.name} position"] = str((saved.position.epoch, saved.position.best))
    clock = ("seconds", "pictures_per_second")
    rows = [{k: v for k, v in row.items() if k not in clock} for row in run.rows()]
    found["metrics"] = str(rows)
    return found


def left_behind(folder: Path) -> list[str]:
    """What a finished run should not hold."""
    return [
        path.name
        for path in folder.iterdir()
        if path.name.endswith((".part", ".damaged")) or "coming" in path.name
    ]


def one_line(error: Exception) -> None:
    """What people read about an error is one line."""
    assert "\n" not in str(error)
