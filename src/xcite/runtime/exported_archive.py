"""A copy of a torch.export archive from which loading can call nothing but tensor operators.

``torch.export.load`` unpickles sample inputs, constants and some weights without limits, loads
machine code that lies in the archive, evaluates the text of shapes and guards as Python, and makes
Python source of the graph's names. The copy has none of those parts, and its texts are checked.
"""

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

from xcite.errors import XciteError
from xcite.weights.torch_files import archive_names

TEXT_LIMIT = 256 * 2**20  # bytes of one JSON part; XCiT-L24's graph has about 8 MB

_GRAPH = "models/model.json"
_TENSORS = re.compile(r"data/(weights|constants)/(weight|tensor)_\d+")
_CONFIGS = (
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)
_WORDS = ("archive_format", "archive_version", "byteorder", ".data/version")
_INPUTS = "data/sample_inputs/model.pt"

_NAME = re.compile(r"[\w.+:\-]{0,400}")  # without brackets, quotes or blanks it can call nothing
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|quantized|quantized_decomposed|torchvision)"
    r"\.(_{0,2}[a-zA-Z][a-zA-Z0-9_]*)\.[a-zA-Z]\w*"
    r"|torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond)"
    r"|torch\.(sym_|_sym_)[a-z]+"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge"
    r"|and_|or_|not_)"
    r"|math\.[a-z][a-z0-9]*"
)
_FILES = ("from_file", "save", "load_library")
_TOKEN = re.compile(
    r"\s+|'(\w{1,60}|-?\d+\.\d*(e[-+]?\d+)?)'|[A-Za-z]\w*|\d+(\.\d*)?(e[-+]?\d+)?|[()\-+*/%,<>=!&|~]"
)
_FUNCTIONS = frozenset(
    re.findall(
        r"\w+",
        """
        Symbol Integer Float Rational Add Mul Pow Max Min Abs Mod PythonMod FloorDiv CleanDiv
        CeilDiv ModularIndexing Where CeilToInt FloorToInt LShift RShift PowByNatural FloatPow
        FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt
        RoundDecimal ToFloat Identity Eq Ne Lt Le Gt Ge Equality Unequality StrictLessThan
        StrictGreaterThan LessThan GreaterThan And Or Not true false True False None oo int_oo
        positive negative integer nonnegative real finite precision evaluate
        """,
    )
)
_SYMBOL = re.compile(r"[a-z]{1,4}\d+")
_CONTAINERS = (
    None,
    "builtins.tuple",
    "builtins.list",
    "builtins.dict",
    "collections.OrderedDict",
)


class _Refused(Exception):
    """What is wrong with the archive, in words that follow its name."""


def inert_copy(path: Path, called: str) -> io.BytesIO:
    """The archive, without what could run Python or machine code when it is loaded.

    Sample inputs are left out: nothing needs them. The same bytes are checked and copied.

    Args:
        called: what messages call the file.

    Raises:
        XciteError: damaged, of an older PyTorch, or not to be had without such parts.
    """
    copy = io.BytesIO()
    try:
        names = archive_names(path)
        roots = {name.split("/", 1)[0] for name in names}
        if len(set(names)) != len(names) or len(roots) != 1:
            raise _Refused(
                "is not as PyTorch 2.8 and later write it; load it where it was made and save it "
                "with torch.export.save again"
            )
        root = f"{roots.pop()}/"
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w") as target:
            if sum(member.file_size for member in source.infolist()) > path.stat().st_size:
                raise _Refused("claims more bytes than it has")
            for name in names:
                data = _kept(name.removeprefix(root), source, name)
                if data is not None:
                    target.writestr(name, data)
    except _Refused as error:
        raise XciteError(f"{called} {error}") from error
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise XciteError(f"cannot read {called}: the archive is damaged ({error})") from error
    copy.seek(0)
    return copy


def _kept(part: str, source: zipfile.ZipFile, name: str) -> bytes | None:
    """The bytes of a part as the copy holds them; None leaves it out."""
    if part in _WORDS or _TENSORS.fullmatch(part):
        return source.read(name)
    if part == _INPUTS:
        return b""
    if part == _GRAPH or part in _CONFIGS:
        if source.getinfo(name).file_size > TEXT_LIMIT:
            raise _Refused(f"has a {part} of more than {TEXT_LIMIT // 2**20} MiB")
        try:
            read = json.loads(source.read(name))
            return json.dumps(_checked(read, "")).encode()
        except RecursionError as error:
            raise _Refused(f"nests {part} too deeply") from error
    if part.startswith(("models/", "data/aotinductor/", "data/weights/", "data/constants/")):
        raise _Refused(
            f"holds {part[:80]!a}, a pickle, compiled code or a second model, which would be run "
            "when it is loaded; export it from plain tensors with torch.export.save"
        )
    return None  # notes of whoever wrote it


def _checked(value: Any, key: str) -> Any:
    """The JSON value under ``key`` with nothing in it that loading could evaluate."""
    if key == "guards_code":
        return []  # Python source that compares shapes; what does not fit fails anyway
    if key == "metadata":
        return {}  # where in somebody's source an operator came from
    if isinstance(value, dict):
        for name in value:
            _plain(name)
        return {name: _checked(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_checked(inner, key) for inner in value]
    if key == "use_pickle" and value:
        raise _Refused("holds pickled tensors, which are not read; export it from plain tensors")
    if not isinstance(value, str):
        return value
    if key in ("in_spec", "out_spec"):
        _check_nest(json.loads(value)[1])
    elif key == "expr_str":
        _check_expression(value)
    elif key in ("target", "as_operator"):
        if not _OPERATOR.fullmatch(value) or value.split(".")[-2] in _FILES:
            raise _Refused(f"calls {value[:80]!a}, which is no operator on tensors")
    elif key not in ("as_string", "as_strings"):  # which are quoted wherever they go
        _plain(value)
    return value


def _plain(text: str) -> None:
    if not _NAME.fullmatch(text):
        raise _Refused(f"has a name that is none: {text[:80]!a}")


def _check_expression(text: str) -> None:
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        word = token[0] if token else ""
        named = word[:1].isalpha()
        if not word or (named and word not in _FUNCTIONS and not _SYMBOL.fullmatch(word)):
            raise _Refused(f"computes a shape by {text[:80]!a}, which is not read")
        at += len(word)


def _check_nest(spec: dict[str, Any]) -> None:
    """How inputs or outputs nest: classes of somebody's own would be imported."""
    if spec["type"] not in _CONTAINERS:
        raise _Refused(
            f"takes or gives a {str(spec['type'])[:80]!a}; export a model that gives a tensor, a "
            "tuple or a dict"
        )
    keys = json.loads(spec["context"] or "null")
    if not isinstance(keys, (list, type(None))):
        raise _Refused("nests its outputs in a way that is not read")
    for key in keys or []:
        if not isinstance(key, int):
            _plain(key if isinstance(key, str) else "[]")
    for inner in spec["children_spec"]:
        _check_nest(inner)
