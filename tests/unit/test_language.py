"""The catalog knows every message, and nothing that is not said; errors are known by pattern."""

import ast
import html.parser
import importlib
import inspect
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import xcite
from xcite import cli, language
from xcite.language import catalog, padded, shortened, tr, translated, width

PACKAGE = Path(xcite.__file__).parent
MESSAGES, ERRORS = catalog("zh")["messages"], catalog("zh")["errors"]
TREES = {p: ast.parse(p.read_text(encoding="utf-8")) for p in sorted(PACKAGE.rglob("*.py"))}
# These hand on what is checked at its own place.
HANDING_ON = {"language.py", "lettering.py", "cli.py"}


@pytest.fixture
def chinese(monkeypatch):
    monkeypatch.setenv("XCITE_LANG", "zh")


def _templates() -> set[str]:
    """First arguments of all calls of `tr`."""
    found = set()
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and "tr" in (
                getattr(node.func, "id", ""),
                getattr(node.func, "attr", ""),
            ):
                template = node.args[0]
                if isinstance(template, ast.Constant):
                    found.add(template.value)
                else:
                    assert path.name in HANDING_ON, f"{path}: {ast.unparse(node)}"
    return found


def _help_texts() -> set[str]:
    def of(command):
        if command.help:
            yield inspect.cleandoc(command.help)
        yield from (parameter.help for parameter in command.params if parameter.help)
        for each in getattr(command, "commands", {}).values():
            yield from of(each)

    found = {text for _, text in cli.COMMANDS.values()} | {"Show this message and exit."}
    for module, _ in cli.COMMANDS.values():
        app = importlib.import_module(f"xcite.commands.{module}").app
        found |= set(of(typer.main.get_command(app)))
    return found | set(of(typer.main.get_command(cli.app)))


class _Texts(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.found.add(data.strip())


def _page_texts() -> set[str]:
    script = (PACKAGE / "server/page.js").read_text(encoding="utf-8")
    page = _Texts()
    page.feed((PACKAGE / "server/page.html").read_text(encoding="utf-8"))
    return set(re.findall(r'\btr\("([^"]+)"', script)) | page.found


def _source_patterns() -> set[str]:
    """Every string of the sources with {} for its values, whole and by its parts."""
    found = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = node.values
                text = "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            pieces = text.split("; ")
            for first in range(len(pieces)):
                for end in range(first + 1, len(pieces) + 1):
                    found.add("; ".join(pieces[first:end]))
    return found


def _fields(template: str) -> list[tuple[str, str]]:
    parsed = string.Formatter().parse(template)
    return sorted((name, spec or "") for _, name, spec, _ in parsed if name is not None)


def test_every_message_is_in_the_catalog_and_no_other():
    said = _templates() | _help_texts() | _page_texts()
    assert sorted(said - MESSAGES.keys()) == [], "translate these in languages/zh.json"
    assert sorted(MESSAGES.keys() - said) == [], "nobody says these any more"


def test_a_translation_has_the_same_values_in_it():
    for template, translation in MESSAGES.items():
        assert _fields(translation) == _fields(template), template
        assert translation.strip(), template


def test_every_error_of_the_catalog_is_raised_somewhere():
    assert sorted(ERRORS.keys() - _source_patterns()) == []


def test_an_error_and_its_translation_have_the_same_values():
    for pattern, translation in ERRORS.items():
        count = pattern.count("{}")
        values = [f"<{number}>" for number in range(count)]
        shown = translation.format(*values)
        assert [v for v in values if v not in shown] == [], pattern
        assert len(pattern.replace("{}", "").strip(" :;,")) >= 5, f"{pattern} would match anything"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LC_ALL": "C", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LC_MESSAGES": "zh_TW.UTF-8", "LANG": "de_DE.UTF-8"}, "zh"),
        ({"LC_ALL": "zh_CN.UTF-8", "XCITE_LANG": "en"}, "en"),
        ({"XCITE_LANG": "zh_CN"}, "zh"),
        ({"XCITE_LANG": "fr", "LANG": "zh_CN"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "PYTHONIOENCODING": "latin-1"}, "en"),
    ],
)
def test_the_environment_chooses(environment, expected):
    code = "from xcite.language import language; print(language())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(PACKAGE.parent), "PYTHONUTF8": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == expected


def test_windows_says_it_in_its_own_way(monkeypatch):
    for name in ("XCITE_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(language, "_of_windows", lambda: "Chinese (Simplified)_China")
    monkeypatch.setattr(language, "_shows", lambda character: True)
    assert language.language() == "zh"


def test_values_are_not_templates(chinese):
    assert tr("note: {note}", note="{0.__class__} {evil}") == "提示：{0.__class__} {evil}"
    assert translated("{evil}: no such file") == "{evil}：没有这个文件"
    assert tr("nobody ever said {this}", this=1) == "nobody ever said 1"


def test_errors_are_translated_as_far_as_they_are_known(chinese):
    loss = (
        "the loss is nan, the gradient's norm inf, in epoch 2, step 3 of 9 (learning rate 0.1); "
        "lower optim.lr, set optim.clip or set run.precision to float32; saved after step 2 of 9 "
        "in epoch 2; go on with: xcite train --resume r"
    )
    assert translated(loss) == (
        "第 2 轮第 3 步（共 9 步，学习率 0.1）的损失为 nan，梯度范数为 inf；请降低 optim.lr、"
        "设置 optim.clip 或把 run.precision 设为 float32；已保存：第 2 轮第 2 步（共 9 步）之后；"
        "继续请运行：xcite train --resume r"
    )
    assert translated("what is this; a.png: no such file") == "what is this；a.png：没有这个文件"
    assert translated("unheard of") == "unheard of"


def test_a_stranger_cannot_make_the_search_long(chinese):
    import time

    began = time.monotonic()
    for name in (": " * 900, "; " * 10, " x " * 600, "; ".join(["a: b"] * 12)):
        translated(f"{name}: no such file")
    translated("; " * 100_000)
    assert time.monotonic() - began < 2


def test_english_stays_as_it_is():
    assert tr("note: {note}", note="x") == "note: x"
    assert translated("a.png: no such file") == "a.png: no such file"


def _xcite(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    return stopped.value.code, captured.out, captured.err


def test_the_command_speaks_chinese_and_english_again(capsys, tmp_path):
    code, out, _ = _xcite(capsys, "--lang", "zh", "--help")
    assert code == 0
    assert "按配方训练模型。" in out
    assert "Train a model" not in out
    _, out, _ = _xcite(capsys, "--lang", "zh", "train", "--help")
    assert "只输出计划" in out
    assert "Print the plan" not in out
    code, _, err = _xcite(capsys, "--lang", "zh", "report", str(tmp_path))
    assert code == 2
    assert err == f"xcite: {tmp_path} 不是运行文件夹：其中没有 recipe.yaml\n"
    _, _, err = _xcite(capsys, "report", str(tmp_path))
    assert err == f"xcite: {tmp_path} is not a run folder: it has no recipe.yaml\n"
    code, _, err = _xcite(capsys, "--lang", "xx", "models")
    assert code == 2
    assert "en, zh" in err


def test_columns():
    assert width("猫a\u0301") == 3
    assert padded("状态", 6) + "|" == "状态  |"
    assert shortened("short", 5) == "short"
    assert shortened("abcdefghijk", 7) == "abcd…jk"
    assert width(shortened("非常长的中文类别名称" * 9, 20)) in (19, 20)
