"""Imports only go down and never in a circle, and only engines import a framework."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import xcite

PACKAGE = Path(xcite.__file__).parent
LAYERS = [
    {
        "errors",
        "regular_files",
        "control_characters",
        "language",
        "whole_files",
        "user_cache",
        "randomness",
        "preprocessing",
        "processes",
        "families",
        "variants",
        "canonical",
        "machine",
        "recipe",
        "lazy_modules",
        "recipe_sections",
        "recipe_text",
        "cost",
        "processor",
        "choices",
        "installed",
    },
    {"data", "weights"},
    {"engines"},
    {"runtime"},
    {"evaluation"},
    {"tuning"},
    {"training"},
    {"alignment", "export", "figures", "server"},
    {"commands", "cli", "__main__"},
]
MODULES = sorted(PACKAGE.rglob("*.py"))


Graph = dict[str, set[str]]


def _imports(nodes: Iterable[ast.AST]) -> list[tuple[int, str]]:
    """Line and dotted name of every import."""
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def _nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def _layer(part: str) -> int:
    return next(level for level, parts in enumerate(LAYERS) if part in parts)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part == "__init__":
        return  # the public face looks at everything, lazily
    for line, name in _imports(_nodes(path)):
        pieces = name.split(".")
        if pieces[0] == "xcite" and len(pieces) > 1 and (PACKAGE / pieces[1]).with_suffix("").name:
            target = pieces[1]
            if not ((PACKAGE / target).is_dir() or (PACKAGE / f"{target}.py").is_file()):
                continue  # a name of the public face, such as xcite.__version__
            assert _layer(target) <= _layer(part), (
                f"{path}:{line} imports {name}, which is above it"
            )


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below but those under ``if TYPE_CHECKING``, which never run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            children: list[ast.AST] = list(child.orelse)
        else:
            children = [child]
        for each in children:
            yield each
            yield from _running(each)


def _module_graph(sources: dict[str, str]) -> Graph:
    """Which modules each module imports, at its top or lazily."""
    graph: Graph = {}
    for module, text in sources.items():
        imports = graph.setdefault(module, set())
        for _, name in _imports(_running(ast.parse(text))):
            while name not in sources and "." in name:
                name = name.rpartition(".")[0]
            if name in sources and name != module:
                imports.add(name)
    return graph


def _package_graph(modules: Graph, packages: set[str]) -> Graph:
    """Which packages each package imports; a module of the top folder counts as one itself."""

    def package(module: str) -> str:
        parent = module.rpartition(".")[0]
        return module if module in packages or parent == "xcite" else parent

    graph: Graph = {}
    for module, imports in modules.items():
        own = package(module)
        others = {package(name) for name in imports}
        # A package and one inside it share a folder; which way they import is tested by itself.
        apart = {o for o in others if not f"{o}.".startswith(f"{own}.")}
        graph.setdefault(own, set()).update(o for o in apart if not own.startswith(f"{o}."))
    return graph


def _circle(graph: Graph) -> list[str]:
    """The names along a circle, the first one again at the end; [] where there is none."""
    done: set[str] = set()

    def search(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph.get(name, ())):
            if found := search(other, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := search(name, []))), [])


def test_no_import_goes_in_a_circle() -> None:
    """Neither between modules nor between packages, lazy imports included."""
    sources = {_module(path): path.read_text(encoding="utf-8") for path in MODULES}
    packages = {_module(path) for path in MODULES if path.name == "__init__.py"}
    sources.pop("xcite")  # the public face looks at everything, lazily
    modules = _module_graph(sources)
    assert not (circle := _circle(modules)), " -> ".join(circle)
    assert not (circle := _circle(_package_graph(modules, packages))), " -> ".join(circle)


@pytest.mark.parametrize("engine", ["paddle", "torch"])
def test_the_plain_model_knows_no_fast_operator(engine: str) -> None:
    """`build` and `engine` choose and `peak` times what they choose; nobody else looks in there."""
    folder = PACKAGE / "engines" / engine
    looking = {
        path.name
        for path in folder.glob("*.py")
        for _, name in _imports(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        if f"{name}.".startswith(f"xcite.engines.{engine}.fast.")
    }
    assert "build.py" in looking
    assert looking <= {"build.py", "engine.py", "peak.py"}


def test_circles_are_found() -> None:
    sources = {
        "xcite.a": "",
        "xcite.a.one": "def f():\n    from xcite.b.two import x",
        "xcite.b": "",
        "xcite.b.two": "import xcite.c",
        "xcite.b.three": "import xcite.a.one",
        "xcite.c": "if TYPE_CHECKING:\n    import xcite.b.two",
    }
    modules = _module_graph(sources)
    assert _circle(modules) == []
    graph = _package_graph(modules, {"xcite.a", "xcite.b"})
    assert _circle(graph) == ["xcite.a", "xcite.b", "xcite.a"]
    sources["xcite.c"] += "\nelse:\n    from xcite.b import two"
    assert _circle(_module_graph(sources)) == ["xcite.b.two", "xcite.c", "xcite.b.two"]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_engines_import_a_framework(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    allowed = {"engines": {"paddle", "torch"}, "runtime": {"paddle"}}
    for line, name in _imports(_nodes(path)):
        framework = name.split(".")[0]
        if framework not in {"paddle", "torch"}:
            continue
        assert framework in allowed.get(relative.parts[0], set()), f"{path}:{line} imports {name}"
        if relative.parts[0] == "engines":
            assert framework in relative.parts, f"{path}:{line}: an engine imports the other one"


@pytest.mark.parametrize("command", [["--help"], ["models", "nano"], ["train", "--help"]])
def test_commands_without_a_model_import_no_framework(command: list[str]) -> None:
    code = (
        "import sys; from xcite.cli import main\n"
        f"try: main({command!r})\nexcept SystemExit: pass\n"
        "heavy = {'paddle', 'torch', 'openvino', 'onnx', 'onnxruntime', 'nncf', 'grain', 'sklearn',"
        " 'matplotlib', 'fastapi'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
