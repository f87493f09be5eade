"""Imports only go down, and only engines import a framework."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import xcite

PACKAGE = Path(xcite.__file__).parent
LAYERS = [
    {
        "errors",
        "whole_files",
        "randomness",
        "preprocessing",
        "families",
        "variants",
        "canonical",
        "recipe",
        "cost",
    },
    {"data", "weights"},
    {"engines"},
    {"training", "evaluation"},
    {"deployment", "figures"},
    {"commands", "cli"},
]
MODULES = sorted(PACKAGE.rglob("*.py"))


def _imports(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def _layer(part: str) -> int:
    return next(level for level, parts in enumerate(LAYERS) if part in parts)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part == "__init__":
        return  # the public face looks at everything, lazily
    for line, name in _imports(path):
        pieces = name.split(".")
        if pieces[0] == "xcite" and len(pieces) > 1 and (PACKAGE / pieces[1]).with_suffix("").name:
            target = pieces[1]
            if not ((PACKAGE / target).is_dir() or (PACKAGE / f"{target}.py").is_file()):
                continue  # a name of the public face, such as xcite.__version__
            assert _layer(target) <= _layer(part), (
                f"{path}:{line} imports {name}, which is above it"
            )


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_engines_import_a_framework(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    allowed = {"engines": {"paddle", "torch"}, "deployment": {"paddle"}}
    for line, name in _imports(path):
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
