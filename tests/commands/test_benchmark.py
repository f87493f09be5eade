"""`xcite benchmark`: what it measures is plausible, and wrong wishes are one line."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from xcite.cli import app
from xcite.cost import multiply_adds
from xcite.engines import engine_package, installed
from xcite.evaluation import throughput
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
    assert found["matrix_product_gmacs"] > 0
    assert found["peak_fraction"] > 0


@pytest.mark.parametrize(("train", "fraction"), [(False, 0.5), (True, 1.5)])
def test_share_of_the_peak(train, fraction, monkeypatch):
    """Two pictures in half a second at 2 GMACs each, where 16 GMACs a second are possible."""
    clock = itertools.count(step=0.5)
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(throughput, "multiply_adds", lambda *_, **__: 2e9)
    monkeypatch.setattr(throughput, "matrix_product_peak", lambda *_, **__: 16.0)
    found = throughput.measure(
        find(MODEL), engine=installed()[0], batch=2, height=32, width=48, train=train, repeats=2
    )
    assert found.seconds == [0.5, 0.5]
    assert found.images_per_second == (4, 4, 4)
    assert found.peak_fraction == fraction  # a training step counts three forwards


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


@pytest.mark.parametrize("operators", ["fast", "plain"])
@pytest.mark.parametrize(("engine", "precision"), PRECISIONS)
def test_linear_maps_that_the_peak_is_measured_with(engine, precision, operators):
    linear_map = engine_package(engine).linear_map
    x, weight = np.random.default_rng(0).standard_normal((2, 300, 200), np.float32)
    found = linear_map(x, weight, precision=precision, operators=operators)
    error = np.abs(found - x @ weight.T).max()
    # sums of 200 products of about 1: 2^-23 or 2^-8 of their size
    assert error < (1e-4 if precision == "float32" else 0.5)
    assert (error > 1e-3) == (precision == "bf16")
