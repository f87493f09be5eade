"""Both engines are what `engines/interface.py` says, and their files are twins."""

import ast
import inspect
import types
from pathlib import Path

import pytest

import xcite.engines
from xcite.engines import engine_package, installed
from xcite.engines.interface import Engine

FOLDER = Path(xcite.engines.__file__).parent
# Every file of an engine; its sub-packages are its own affair.
FILES = sorted(
    {path.name for engine in ("torch", "paddle") for path in (FOLDER / engine).glob("*.py")}
)


def parameters(function):
    """(name, kind, default) of each argument; annotations name the framework's own types."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


PROMISED = [
    name
    for name, member in vars(Engine).items()
    if isinstance(member, types.FunctionType | classmethod | property)
    and (not name.startswith("_") or name == "__init__")
]


@pytest.mark.parametrize("name", installed())
@pytest.mark.parametrize("method", PROMISED)
def test_engine_has_every_method_as_promised(name, method):
    engine = engine_package(name).Engine
    own = getattr(engine, method)
    assert own is not getattr(Engine, method)
    if isinstance(own, property):
        own = own.fget
        assert parameters(own) == parameters(getattr(Engine, method).fget)
        return
    assert parameters(own) == parameters(getattr(Engine, method))
    assert inspect.getdoc(own)


@pytest.mark.parametrize("name", installed())
def test_engine_offers_nothing_else(name):
    engine = engine_package(name).Engine
    public = {member for member in dir(engine) if not member.startswith("_")}
    assert public == {m for m in PROMISED if m != "__init__"} | {"name"}
    assert engine.name == name


def names(node):
    """What a statement of a module or a class declares: pairs of (name, arguments and defaults)."""
    if isinstance(node, ast.FunctionDef):
        return [(node.name, arguments(node.args))]
    if isinstance(node, ast.ClassDef):
        members = [
            (f"{node.name}.{name}", shape) for part in node.body for name, shape in names(part)
        ]
        return [(node.name, None), *members]
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    assigned = [n for t in targets if t for n in ast.walk(t) if isinstance(n, ast.Name)]
    inside = [*getattr(node, "body", []), *getattr(node, "orelse", [])]  # of an if, for instance
    return [(n.id, None) for n in assigned] + [pair for part in inside for pair in names(part)]


def arguments(given):
    return (
        [a.arg for a in (*given.posonlyargs, *given.args)],
        [ast.unparse(d) for d in given.defaults],
        given.vararg and given.vararg.arg,
        [a.arg for a in given.kwonlyargs],
        [d and ast.unparse(d) for d in given.kw_defaults],
        given.kwarg and given.kwarg.arg,
    )


def declared(engine, file):
    """All that a file declares, private names and constants too, in its order.

    Read from the source, so that twins are compared even where only one framework is installed.
    """
    source = (FOLDER / engine / file).read_text(encoding="utf-8")
    return [pair for node in ast.parse(source).body for pair in names(node)]


@pytest.mark.parametrize("file", FILES)
def test_twins_declare_the_same_in_the_same_order(file):
    for engine in ("torch", "paddle"):
        assert (FOLDER / engine / file).is_file(), f"{engine} has no {file}"
    torch, paddle = declared("torch", file), declared("paddle", file)
    assert [name for name, _ in torch] == [name for name, _ in paddle]
    assert torch == paddle


def test_what_counts_as_declared():
    source = (
        "A: int = 1\nif A:\n    B = C = 2\nclass D(E):\n    f = 3\n    def _g(s, h, *, i=4): ...\n"
    )
    found = [pair for node in ast.parse(source).body for pair in names(node)]
    assert [name for name, _ in found] == ["A", "B", "C", "D", "D.f", "D._g"]
    assert found[-1][1] == (["s", "h"], [], None, ["i"], ["4"], None)
