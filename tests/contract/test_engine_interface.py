"""Both engines are what `engines/interface.py` says, and their files are twins."""

import ast
import inspect
from pathlib import Path

import pytest

import xcite.engines
from xcite.engines import engine_package, installed
from xcite.engines.interface import Engine

FOLDER = Path(xcite.engines.__file__).parent
# Paddle has one library for matrix products where PyTorch has two.
WITHOUT_TWIN = {"linear.py"}
FILES = sorted(
    path.name for path in (FOLDER / "torch").glob("*.py") if path.name not in WITHOUT_TWIN
)
# Where a framework needs a function that the other has no use for, it stands here with the reason.
ONE_SIDED = {
    "canonical_state.py": {"torch": {"torch_name"}, "paddle": {"paddle_name"}},
    "xcit.py": {
        # PyTorch asks for the device, has bfloat16 on a CPU, takes the norm into its slices, and
        # is fast enough with what is large for the small products' gradient to count
        "torch": {
            *("full_precision", "autocast_dtype", "GridGELU", "HeadProducts"),
            *("SlicedMlp", "slices", "per_row"),
        },
        # Paddle needs a BatchNorm with PyTorch's variance; parameters, float32, GELU and whatever
        # repeats an operand by hand
        "paddle": {
            *("full_precision", "BatchNorm2D", "parameter", "precise", "gelu", "SlicedMlp"),
            *("slices", "repeats_slowly", "repeated", "token_sums", "add_bias", "add_channel_bias"),
        },
    },
}


def parameters(function):
    """(name, kind, default) of each argument; annotations name the framework's own types."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


PROMISED = [
    name
    for name, member in vars(Engine).items()
    if inspect.isfunction(member) and (not name.startswith("_") or name == "__init__")
]


@pytest.mark.parametrize("name", installed())
@pytest.mark.parametrize("method", [m for m in PROMISED if m != "__init__"] + ["__init__"])
def test_engine_has_every_method_as_promised(name, method):
    engine = engine_package(name).Engine
    assert parameters(getattr(engine, method)) == parameters(getattr(Engine, method))
    assert inspect.getdoc(getattr(engine, method))


@pytest.mark.parametrize("name", installed())
def test_engine_offers_nothing_else(name):
    public = [m for m in vars(engine_package(name).Engine) if not m.startswith("_")]
    assert set(public) == {m for m in PROMISED if m != "__init__"} | {"name"}
    assert engine_package(name).Engine.name == name


def declared(engine, file):
    """Public functions and classes with their public methods: name to (arguments, defaults).

    Read from the source, so that twins are compared even where only one framework is installed.
    """
    one_sided = ONE_SIDED.get(file, {}).get(engine, set())
    found = {}

    def note(prefix, node):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = node.args
            found[prefix + node.name] = (
                [a.arg for a in (*arguments.posonlyargs, *arguments.args)],
                [a.arg for a in arguments.kwonlyargs],
                [ast.unparse(d) for d in arguments.defaults],
                [d and ast.unparse(d) for d in arguments.kw_defaults],
            )
        elif isinstance(node, ast.ClassDef) and node.name not in one_sided:
            found[prefix + node.name] = None
            for member in node.body:
                note(f"{prefix}{node.name}.", member)

    for node in ast.parse((FOLDER / engine / file).read_text(encoding="utf-8")).body:
        note("", node)
    return {name: shape for name, shape in found.items() if name not in one_sided}


def test_engines_have_the_same_files():
    paddle = {path.name for path in (FOLDER / "paddle").glob("*.py")}
    assert paddle - WITHOUT_TWIN == set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_twins_declare_the_same_in_the_same_order(file):
    torch, paddle = (declared(engine, file) for engine in ("torch", "paddle"))
    assert list(torch) == list(paddle)
    assert torch == paddle
    for engine, names in ONE_SIDED.get(file, {}).items():  # no exception outlives its reason
        source = (FOLDER / engine / file).read_text(encoding="utf-8")
        assert all(f"def {name}(" in source or f"class {name}(" in source for name in names)
