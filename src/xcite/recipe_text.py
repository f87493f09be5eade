"""How recipes and settings are written: YAML, and text that is taken as it stands.

A key whose type is text takes a setting's value to the letter: a folder may be called ``2024``,
``no`` or ``photos #2``, of which YAML would make a number, a truth value or a comment.
"""

import re
from collections.abc import Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from xcite.errors import XciteError

LONGEST = 1_000_000  # bytes of a recipe


def read_yaml(text: str, origin: str) -> Any:
    """What YAML text says; ``origin`` names it in errors.

    Raises:
        XciteError: it is no YAML, or longer than a recipe can be.
    """
    if len(text) > LONGEST:
        raise XciteError(f"{origin}: longer than a recipe can be")
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # of a date that cannot be
        where = getattr(error, "problem_mark", None)
        line = f" in line {where.line + 1}" if where else ""
        reason = getattr(error, "problem", None) or "it cannot be parsed"
        raise XciteError(f"{origin} is not YAML{line}: {reason}") from error


def write_yaml(values: Any) -> str:
    """YAML text from which `read_yaml` makes the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def apply_setting(values: dict[str, Any], setting: str, model: type[BaseModel]) -> None:
    """Place what ``section.key=value`` says into nested ``values``; ``model`` knows the types.

    Text goes in as it stands where the key's type is text, else it is read as YAML. Nothing after
    the sign, and the word ``null``, empty a key that may be empty.

    Raises:
        XciteError: not of that form, a value that is no YAML, or nothing where something must be.
    """
    key, equals, text = setting.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise XciteError(f"--set {setting}: write it as section.key=value")
    types = _alternatives(names, model)
    said = types - {type(None)}
    if text.strip() in ("", "null") and type(None) in types:
        value = None
    elif said and not text.strip():
        raise XciteError(f"--set {setting}: {key.strip()} cannot be empty; write its value")
    elif said == {str}:
        value = text
    elif said and all(isinstance(kind, str) for kind in said):  # named choices
        value = text.strip()
    else:
        value = read_yaml(text, f"--set {setting}")
    place(values, names, value, f"--set {setting}")


def place(values: dict[str, Any], keys: Sequence[str], value: Any, origin: str) -> None:
    """Put a value into nested sections; ``origin`` names it in errors.

    Raises:
        XciteError: something on the way is no section.
    """
    for key in keys[:-1]:
        if values.get(key) is None:  # as a dumped recipe has it
            values[key] = {}
        values = values[key]
        if not isinstance(values, dict):
            raise XciteError(f"{origin}: {key} is not a section")
    values[keys[-1]] = value


def section_type(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation allows; None if it allows none."""
    kinds = [annotation, *get_args(annotation)]
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def _alternatives(names: Sequence[str], model: type[BaseModel] | None) -> set[Any]:
    """The types that a key's value may have, and the texts of a choice; empty if it is unknown."""
    annotation: Any = None
    for name in names:
        if model is None or name not in model.model_fields:
            return set()
        annotation = model.model_fields[name].annotation
        model = section_type(annotation)
    return _flat(annotation)


def _flat(annotation: Any) -> set[Any]:
    if get_origin(annotation) in (Union, UnionType):
        return set().union(*map(_flat, get_args(annotation)))
    return set(get_args(annotation)) if get_origin(annotation) is Literal else {annotation}


class _Loader(yaml.SafeLoader):
    """YAML where 1e-5 is a number, as everybody expects (YAML 1.1 wants 1.0e-5).

    Aliases are refused, because a few lines of them stand for gigabytes, and so is a key written
    twice, of which YAML would silently take the last.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.constructor.ConstructorError(None, None, "aliases are not used here", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node.value, str) else None
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would take for a number."""


for _way in (_Loader, _Dumper):
    _way.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )
