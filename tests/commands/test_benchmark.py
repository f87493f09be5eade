"""`xcite benchmark`: what it measures is plausible, and wrong wishes are one line."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from xcite.cli import app
from xcite.cost import multiply_adds
from xcite.engines import create_engine, installed
from xcite.variants import find

MODEL = "xcit_nano_12_p16"
SMALL = ["benchmark", MODEL, "--batch", "2", "--size", "32", "48", "--repeats", "2"]


@pytest.mark.parametrize("work", [[], ["--train"]])
@pytest.mark.parametrize("engine", installed())
def test_what_is_measured(engine, work):
    done = CliRunner().invoke(app, [*SMALL, "--engine", engine, "--json", *work])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    low, median, high = found["images_per_second"]
    assert 0 < low <= median <= high
    assert len(found["seconds"]) == 2
    # six tokens are too few for the covariance form
    assert found["gmacs"] == multiply_adds(find(MODEL), 32, 48, form="usual") / 1e9
    passes = 3 if work else 1
    share = median * found["gmacs"] * passes / found["matrix_product_gmacs"]
    assert found["peak_fraction"] == pytest.approx(share)


@pytest.mark.parametrize("engine", installed())
def test_what_a_person_reads(engine):
    done = CliRunner().invoke(app, [*SMALL, "--engine", engine])
    lines = [line.split("  ")[0] for line in done.stdout.splitlines()]
    assert lines == [
        f"{MODEL} on {engine}, float32, forward, batch 2, 32 x 48",
        *("images/s", "peak memory", "GMACs", "of the peak"),
    ]


PRECISIONS = [
    (engine, precision)
    for engine in installed()
    for precision in ("float32", "bf16")
    if (engine, precision) != ("paddle", "bf16")
]


@pytest.mark.parametrize(("engine", "precision"), PRECISIONS)
def test_linear_maps_that_the_peak_is_measured_with(engine, precision):
    runner = create_engine(engine, find(MODEL), precision=precision)
    x, weight = np.random.default_rng(0).standard_normal((2, 300, 200), np.float32)
    error = np.abs(runner.linear_map(x, weight) - x @ weight.T).max()
    # sums of 200 products of about 1: 2^-23 or 2^-8 of their size
    assert error < (1e-4 if precision == "float32" else 0.5)
    assert (error > 1e-3) == (precision == "bf16")
