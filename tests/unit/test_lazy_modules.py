"""`import xcite` is light, and every module is reached through it."""

import importlib.util
import subprocess
import sys

import pytest

import xcite
from xcite import weights
from xcite.engines import installed
from xcite.lazy_modules import visible_names

LIGHT = """
import sys
import xcite
heavy = {"PIL", "paddle", "torch", "openvino", "onnxruntime", "grain", "matplotlib", "fastapi"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert {"weights", "training", "Predictor"} <= set(dir(xcite))
xcite.data.sources.opening.open_source  # each name imports what is before it
xcite.weights.convert.convert
xcite.export.options.ExportOptions
xcite.training.teachers.teacher
xcite.runtime.programs.open_program
xcite.engines.interface.Engine
assert not {"paddle", "torch"} & set(sys.modules)
"""


def test_importing_is_light_and_names_reach_far() -> None:
    subprocess.run([sys.executable, "-c", LIGHT], check=True)


# Both engines and every runtime, in a process of their own: their libraries do not always get on.
EVERY_MODULE = """
import pkgutil
import xcite
names = [found.name for found in pkgutil.walk_packages(xcite.__path__, "xcite.")]
assert len(names) > 200
for name in names:
    if name.startswith("xcite.commands."):
        continue  # the program, not the library
    place = xcite
    for part in name.split(".")[1:]:
        place = place if part == "__main__" else getattr(place, part)
"""


@pytest.mark.skipif(set(installed()) != {"paddle", "torch"}, reason="some modules are an engine's")
def test_every_module_is_reached() -> None:
    for needed in ("fastapi", "openvino", "onnx", "nncf"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"no {needed}")
    subprocess.run([sys.executable, "-c", EVERY_MODULE], check=True)


@pytest.mark.parametrize("package", [xcite, weights, xcite.data.sources, xcite.engines])
@pytest.mark.parametrize("name", ["nothing", "__wrapped__", "_private"])
def test_what_is_not_there_is_missed_as_usual(package: object, name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(package, name)


def test_what_completion_offers() -> None:
    assert {"open_weights", "convert", "opening"} <= set(visible_names(vars(weights)))
