"""benchmarks/gpu.py, dry on a CPU: what it writes, and what it does when memory is out."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xcite.engines import installed

torch = pytest.importorskip("torch")  # the reference is PyTorch's
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
MODEL = "xcit_nano_12_p16"
DRY = ["--device", "cpu", "--models", MODEL, "--rounds", "1", "--size", "32"]
TRAIN = "model train_samples_per_sec train_step_time train_batch_size train_img_size param_count"
INFER = (
    "model infer_samples_per_sec infer_step_time infer_batch_size infer_img_size infer_gmacs "
    "infer_macts param_count"
)
REFERENCE = f"""
import torch

class Tiny(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.embed = torch.nn.Conv2d(3, 4, 16, 16)
        self.norm = torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4, num_classes)

    def forward(self, images):
        if len(images) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        logits = self.head(self.norm(self.embed(images)).mean((2, 3)))
        return (logits, logits) if self.training else logits

def {MODEL}(pretrained=False, num_classes=10):
    return Tiny(num_classes)
"""


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "reference.py").write_text(REFERENCE, encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1] / "src")},
        capture_output=True,
        text=True,
        check=False,
    )


def table(folder: Path, work: str) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a file."""
    with (folder / f"gpu-{work}.csv").open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
        return list(reader.fieldnames or ()), rows


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_names_the_dry_run(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.endswith(f"gpu.py --device cpu --models {MODEL} --batch 2 --rounds 1")


@pytest.mark.parametrize("engine", installed())
def test_the_dry_run_gives_timms_columns(engine: str, tmp_path: Path) -> None:
    precisions = ["float32", "bf16"] if engine == "torch" else ["float32"]
    further = ["--engine", engine, "--precision", *precisions, "--reference", "reference.py"]
    done = run(tmp_path, *DRY, "--batch", "2", *further)
    assert done.returncode == 0, done.stderr
    for work, columns in (("train", TRAIN.split()), ("infer", INFER.split())):
        names, rows = table(tmp_path, work)
        assert names[: len(columns)] == columns
        sides = [(row["side"], row["precision"]) for row in rows]
        both = (f"Xcite, {engine}", "reference")
        assert sides == [(side, precision) for precision in precisions for side in both]
        assert [row["param_count"] for row in rows[:2]] == ["3.05", "0.01"]
        for row in rows:
            assert (row["model"], row[f"{work}_batch_size"], row[f"{work}_img_size"]) == (
                *(MODEL, "2", "32"),
            )
            speed, milliseconds = (
                float(row[f"{work}_{column}"]) for column in ("samples_per_sec", "step_time")
            )
            assert speed == pytest.approx(2 * 1000 / milliseconds, rel=0.01)
            positive = ["peak_memory_mib", "to_reference"]
            positive += ["bf16_peak_fraction"] if engine == "torch" else []
            assert all(float(row[name]) > 0 for name in positive)
            assert row["mode"] == "eager"
            assert f"{engine} " in row["machine"]
        assert sum(f"| {MODEL} | {work} |" in line for line in done.stdout.splitlines()) == len(
            rows
        )
    assert "1970 (RTX 3090, amp)" in done.stdout
    assert "22040 (RTX 4090, compiled)" in done.stdout


@pytest.mark.parametrize("asked", ["--largest", "--batch"])
def test_the_batch_is_the_largest_that_fits(asked: str, tmp_path: Path) -> None:
    """The reference has room for 16 pictures: doubled up to there, or halved down to there."""
    done = run(tmp_path, *DRY, asked, "32", "--work", "train", "--reference", "reference.py")
    assert done.returncode == 0, done.stderr
    _, rows = table(tmp_path, "train")
    assert [row["train_batch_size"] for row in rows] == ["16", "16"]
    assert done.stderr.count("out of memory, so the batch is halved") == (asked == "--batch")


def test_a_reference_that_fails_costs_its_own_row_alone(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def build(architecture):\n    1 / 0\n", encoding="utf-8")
    done = run(tmp_path, *DRY, "--batch", "2", "--work", "infer", "--reference", "broken.py")
    assert done.returncode == 1
    assert "the reference: left out: ZeroDivisionError" in done.stderr
    assert [row["side"] for row in table(tmp_path, "infer")[1]] == ["Xcite, torch"]
