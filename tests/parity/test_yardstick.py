"""The plain transcription that speed is compared with computes what the official model does."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from reference_rule import (
    GOLDENS,
    call,
    epsilon_probe,
    reference_images,
    reference_weights,
    relative_error,
)

from xcite import variants
from xcite.engines import installed

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("engine", [name for name in installed() if name == "torch"])
@pytest.mark.parametrize("name", ["xcit_nano_12_p8", "xcit_tiny_12_p16"])
def test_yardstick_is_exact(engine, name):
    file = BENCHMARKS / f"reference_xcit_{engine}.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    yardstick = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(yardstick)
    architecture = variants.find(name)
    model = yardstick.XCiT(architecture)
    model.eval()
    with np.load(GOLDENS / f"eval_{name}.npz") as goldens:
        for key, batch in (
            ("s0_b2_96x160", (2, 3, 96, 160)),
            ("epsprobe_s0_b2_64x64", (2, 3, 64, 64)),
        ):
            weights = reference_weights(architecture, 0)
            if key.startswith("epsprobe"):
                weights = epsilon_probe(weights)
            yardstick.load_weights(model, weights)
            found = call(model, engine, reference_images(batch, 0))
            # As for our own models: rounding stays below, a wrong epsilon or order above.
            assert relative_error(found, goldens[key]) < 1e-5
