"""Commands on a processor with fewer instructions, imitated by keeping the libraries from them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xcite import recipe as recipes
from xcite.processor import this_processor

pytest.importorskip("torch")

CAPS = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
TINY = [
    "--engine=torch",
    *("--set", "model.embed_dim=16", "--set", "model.depth=1", "--set", "model.num_heads=2"),
    *("--set", "optim.epochs=1", "--set", "optim.warmup_epochs=0"),
]

pytestmark = pytest.mark.skipif(
    not this_processor().known, reason="this system does not tell a processor's instructions"
)


def xcite(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "xcite.cli", *arguments],
        cwd=folder,
        env={**os.environ, **CAPS, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_auto_is_float32_and_bf16_by_name_is_warned_of(tmp_path: Path) -> None:
    xcite("train", "digits", *TINY, "--set", "run.precision=auto", folder=tmp_path)
    recipe = recipes.load(str(tmp_path / "runs" / "digits-1" / "recipe.yaml"))
    assert recipe.run.precision == "float32"
    assert recipe.run.choices is not None
    assert recipe.run.choices.products == "matrix"
    asked = ["train", "digits", *TINY, "--set", "run.precision=bf16"]
    plan = xcite(*asked, "--dry-run", folder=tmp_path).stdout
    assert "no bfloat16 instructions (AVX2): bf16 is imitated" in " ".join(plan.split())
    done = xcite(*asked, folder=tmp_path)
    told = " ".join((done.stdout + done.stderr).split())
    assert "bf16 is imitated" in told.partition("Validate Epoch")[0]  # not after the first steps


def test_the_cifar10_recipe_says_nothing_of_a_processor() -> None:
    assert "precision" not in recipes.load("cifar10").run.model_fields_set
