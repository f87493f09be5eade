"""One self-contained HTML page about a run: recipe, curves, errors, cost, environment."""

import base64
import html
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xcite import recipe as recipes
from xcite.canonical import parameter_count
from xcite.control_characters import visible, visible_lines
from xcite.cost import multiply_adds
from xcite.errors import XciteError
from xcite.figures.attention import attention_maps, overlay_png, patch_size, picture_png
from xcite.training.history import History
from xcite.training.run_data import open_validation
from xcite.training.run_folder import RunFolder
from xcite.whole_files import write_text

if TYPE_CHECKING:
    from xcite.data.sources import Source
    from xcite.evaluation.accuracy import Accuracy
    from xcite.runtime.opening import OpenedModel
    from xcite.weights import WeightFile

WORST_CLASSES = 20

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f27; --paper: #f5f6f8; --card: #fff; --line: #d5d9e0;
  --quiet: #59616f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e9ecf2; --paper: #12151b; --card: #1b2029;
  --line: #343c4a; --quiet: #a3acba; } }
body { margin: 0 auto; max-width: 70rem; padding: 2rem 1rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1, h2 { line-height: 1.2; } h1 { margin: 0; } h2 { margin-top: 0; font-size: 1.2rem; }
section { margin: 1rem 0; padding: 1.25rem; border: 1px solid var(--line); border-radius: .75rem;
  background: var(--card); }
.quiet { color: var(--quiet); }
.wide { display: block; max-width: 100%; background: #fff; border-radius: .5rem; }
table { border-collapse: collapse; }
th, td { padding: .2rem 1.25rem .2rem 0; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
.facts { display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; margin: 1rem 0; padding: 0; }
.facts div { min-width: 7rem; } .facts dt { color: var(--quiet); font-size: .875rem; }
.facts dd { margin: 0; font-size: 1.25rem; font-weight: 600; }
.pictures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); }
.pictures figure { margin: 0; }
.pictures .pair { display: grid; grid-template-columns: 1fr 1fr; gap: .25rem; }
.pictures img { width: 100%; border-radius: .35rem; image-rendering: pixelated; }
figcaption { font-size: .875rem; overflow-wrap: anywhere; }
pre { overflow-x: auto; margin: 0; font-size: .875rem; columns: 19rem; }
"""


@dataclass(frozen=True)
class _Case:
    """One picture and what the model made of it; ``attention`` (rows, columns) of an XCiT."""

    name: str
    true: str
    said: str
    probability: float
    true_probability: float
    picture: np.ndarray
    attention: np.ndarray | None


@dataclass(frozen=True)
class _Findings:
    data: str
    accuracy: "Accuracy"
    best: list[_Case]
    worst: list[_Case]
    skipped: dict[str, str]


def write_report(
    run: str | Path,
    out: str | Path,
    *,
    data: str | None = None,
    engine: str | None = None,
    pictures: int = 8,
) -> None:
    """Write the page; it loads nothing from elsewhere, so it can be sent as one file.

    Args:
        run: a run folder, finished or not.
        data: validation pictures; None takes the recipe's. Where there are none the page has no
            confusion and no pictures, and says so.
        engine: which engine evaluates; None takes the run's, if it is installed.
        pictures: how many of the best and of the worst are shown.

    Raises:
        XciteError: not a run folder, or data that cannot be read or do not fit.
    """
    folder = RunFolder.open(run)
    recipe = recipes.load(str(folder.recipe))
    rows = folder.rows()
    weights = None
    if folder.best.is_file() or folder.last.is_file():
        from xcite.weights import open_weights

        weights = open_weights(folder.path)
        if weights.metadata.preprocessing is None:
            weights.metadata.preprocessing = recipe.preprocessing
    held_out = "held-out pictures" if folder.split.is_file() else None
    spec = data or recipe.data.validation or held_out
    findings = None
    if weights is not None and spec:
        held = open_validation(folder.path) if spec == held_out else None
        findings = _examine(weights, recipe, spec, data is None, engine, pictures, held)
    name = folder.path.resolve().name
    parts = [
        _head(name, recipe, rows, weights, findings),
        _altered(folder),
        _curves(name, rows),
        _confusion(findings, spec, weights),
        *_cases(findings),
        _cost(folder, recipe, rows, weights),
        _section("Recipe", f"<pre>{html.escape(visible_lines(recipes.dump(recipe)))}</pre>"),
        _environment(folder),
    ]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    write_text(
        out,
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{_text(name)}: Xcite run</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n",
    )


def _examine(
    weights: "WeightFile",
    recipe: recipes.Recipe,
    spec: str,
    own: bool,
    engine: str | None,
    pictures: int,
    held_out: "Source | None",
) -> _Findings:
    """Show the model every validation picture; keep the counts and the most telling pictures."""
    from xcite.data.pipeline import EvaluationLoader
    from xcite.engines import installed
    from xcite.evaluation.accuracy import Counter, cross_entropy
    from xcite.runtime.classes import open_labelled
    from xcite.runtime.opening import on_engine

    if engine is None and recipe.run.engine in installed():
        engine = recipe.run.engine
    model = on_engine(weights, engine, called="this run")
    if held_out is not None:
        source, names = held_out, held_out.class_names
    else:
        labelled = open_labelled(
            spec,
            model.class_names,
            model.architecture.num_classes,
            channels=model.preprocessing.channels,
            root=recipe.data.root if own else None,
            outside_root=recipe.data.outside_root if own else False,
            model="this run",
        )
        source, names = labelled.source, labelled.class_names
    loader = EvaluationLoader(
        source,
        model.preprocessing,
        batch=64,
        workers=recipe.data.workers,
        on_error="skip",
        skip_limit=len(source),  # a report says how many, and is made in any case
        max_pixels=recipe.data.max_pixels,
    )
    counter = Counter(names, np.unique(source.labels))
    losses, indices, said = [], [], []
    for batch in loader:
        logits = model.logits(batch.pictures)
        counter.add(logits, batch.labels)
        losses.append(cross_entropy(logits, batch.labels))
        indices.append(batch.views[:, 0])
        said.append(logits.argmax(axis=1))
    if not losses:
        raise XciteError(f"no picture of {spec} could be decoded")
    loss, index = np.concatenate(losses), np.concatenate(indices)
    correct = np.concatenate(said) == source.labels[index]
    order = np.argsort(loss, kind="stable")
    right, wrong = order[correct[order]], order[~correct[order]][::-1]
    best = index[_one_of_each(right, source.labels[index])[:pictures]]
    worst = index[wrong[:pictures]]
    return _Findings(
        data=spec,
        accuracy=counter.result(),
        best=[_case(model, names, source, int(i)) for i in best],
        worst=[_case(model, names, source, int(i)) for i in worst],
        skipped=loader.skipped,
    )


def _one_of_each(order: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``order`` with the first of every class in front, then the second ones, and so on."""
    seen: dict[int, int] = {}
    turns = []
    for position in order:
        label = int(labels[position])
        turns.append(seen.get(label, 0))
        seen[label] = turns[-1] + 1
    return order[np.argsort(turns, kind="stable")]


def _case(model: "OpenedModel", names: list[str], source: "Source", index: int) -> _Case:
    from xcite.data.decoding import decode
    from xcite.data.transforms import normalise
    from xcite.runtime.ranking import probabilities

    name = source.name(index)
    picture = decode(source.read(index), channels=model.preprocessing.channels, origin=name)
    shown = model.pixels(picture)
    images = normalise(shown[None], model.preprocessing)
    shares = probabilities(model.classifier.logits(images))[0]
    attention = None
    if model.architecture.has_attention_maps:
        classes, _ = attention_maps(model, images)  # (1, layers, heads, 1 + N)
        rows = -(-shown.shape[0] // patch_size(model))
        attention = classes[0, -1, :, 1:].mean(axis=0).reshape(rows, -1)
    label, best = int(source.labels[index]), int(shares.argmax())
    return _Case(
        name=name,
        true=names[label],
        said=names[best],
        probability=float(shares[best]),
        true_probability=float(shares[label]),
        picture=shown,
        attention=attention,
    )


def _text(stranger: str) -> str:
    return html.escape(visible(stranger))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{body}</section>\n"


def _picture(data: bytes, words: str, kind: str = "") -> str:
    encoded = base64.b64encode(data).decode()
    return f"<img class='{kind}' alt='{_text(words)}' src='data:image/png;base64,{encoded}'>"


def _table(rows: Iterable[Sequence[object]], head: Sequence[str] = ()) -> str:
    def cell(value: object) -> str:
        kind = " class='number'" if isinstance(value, int | float) else ""
        text = f"{value:,.1f}" if isinstance(value, float) else str(value)
        return f"<td{kind}>{_text(text)}</td>"

    heading = "".join(f"<th scope='col'>{_text(text)}</th>" for text in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<div class='scroll'><table>{f'<tr>{heading}</tr>' if head else ''}{body}</table></div>"


def _hours(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"


def _head(
    name: str,
    recipe: recipes.Recipe,
    rows: list[dict[str, Any]],
    weights: "WeightFile | None",
    findings: _Findings | None,
) -> str:
    epochs = [row for row in rows if row.get("kind") == "epoch"]
    facts = [("model", recipe.model.name)]
    if findings:
        accuracy = findings.accuracy
        facts.append(("top-1", f"{accuracy.top1:.2f} %"))
        if accuracy.absent:
            alone = f"top-1 among the {len(accuracy.present)} classes present"
            facts.append((alone, f"{accuracy.top1_present:.2f} %"))
        facts.append(("top-5", f"{findings.accuracy.top5:.2f} %"))
    if weights is not None:
        facts.append(("parameters", f"{parameter_count(weights.architecture) / 1e6:.2f} M"))
    facts.append(("epochs", f"{len(epochs)} of {recipe.optim.epochs}"))
    facts.append(("engine", recipe.run.engine))
    listed = "".join(
        f"<div><dt>{_text(key)}</dt><dd>{_text(value)}</dd></div>" for key, value in facts
    )
    changed = ", ".join(f"{key} {value}" for key, value in recipe.model.overrides().items())
    with_ = f"<p class='quiet'>{_text(recipe.model.name)} with {_text(changed)}</p>"
    return (
        f"<header><h1>{_text(name)}</h1><dl class='facts'>{listed}</dl>"
        f"{with_ if changed else ''}</header>\n"
    )


def _altered(folder: RunFolder) -> str:
    """What was changed while the run went on, so that its recipe alone does not give its result."""
    changes = History(folder.history).altered()
    if not changes:
        return ""
    return _section("Changed on the way", "".join(f"<p>{_text(text)}</p>" for text in changes))


def _curves(name: str, rows: list[dict[str, Any]]) -> str:
    from xcite.figures.curves import draw_curves

    if not any(row.get("kind") in ("step", "epoch") for row in rows):
        return _section("Curves", "<p>Nothing was recorded yet.</p>")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "curves.png"
        draw_curves({name: rows}, path)
        drawn = path.read_bytes()
    words = "Loss, top-1 and learning rate over the epochs"
    last = next((row for row in reversed(rows) if row.get("kind") == "epoch"), None)
    said = f"<p>{_words(last)}</p>" if last else ""
    return _section("Curves", _picture(drawn, words, "wide") + said)


def _words(row: dict[str, Any]) -> str:
    named = {"loss": "training loss", "val_loss": "validation loss", "acc1": "top-1"}
    parts = [
        f"{words} {row[key]:.4g}{' %' if key == 'acc1' else ''}"
        for key, words in named.items()
        if isinstance(row.get(key), int | float)
    ]
    return f"After epoch {row['epoch']}: {', '.join(parts)}."


def _confusion(findings: _Findings | None, spec: str | None, weights: "WeightFile | None") -> str:
    if findings is None:
        reason = (
            "The run has not saved any weights yet."
            if weights is None
            else "The recipe names no validation pictures; give some with --data."
        )
        return _section("Accuracy", f"<p>{reason}</p>")
    accuracy = findings.accuracy
    said = (
        f"<p>{accuracy.pictures:,} pictures of {_text(Path(findings.data).name)}: "
        f"top-1 {accuracy.top1:.2f} %, top-5 {accuracy.top5:.2f} %, loss {accuracy.loss:.4f}."
    )
    if findings.skipped:
        said += f" {len(findings.skipped)} could not be decoded and are left out."
    said += "</p>"
    if accuracy.confusion is not None:
        from xcite.figures.confusion import draw_confusion

        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "confusion.png"
            draw_confusion(accuracy, path)
            said += _picture(path.read_bytes(), "Confusion matrix; the table says the same", "wide")
    rows = [row for row in accuracy.per_class() if row["recall"] is not None]
    rows = sorted(rows, key=lambda row: row["recall"])[:WORST_CLASSES]
    few = len(rows) == len(accuracy.class_names)
    said += f"<h3>{'Classes' if few else f'The {len(rows)} worst classes'}, worst first</h3>"
    said += _table(
        (
            (
                row["class"],
                row["pictures"],
                row["recall"],
                "-" if row["precision"] is None else row["precision"],
            )
            for row in rows
        ),
        ("class", "pictures", "recognised, %", "right when said, %"),
    )
    return _section("Accuracy", said)


def _cases(findings: _Findings | None) -> list[str]:
    if findings is None:
        return []
    result = []
    for title, cases, none in (
        ("Most certain and right", findings.best, "No picture was recognised."),
        ("Furthest off", findings.worst, "No picture was mistaken."),
    ):
        figures = "".join(_figure(case) for case in cases)
        body = f"<div class='pictures'>{figures}</div>" if cases else f"<p>{none}</p>"
        if any(case.attention is not None for case in cases):
            body = (
                "<p class='quiet'>Left what the model saw, right where its last class-attention "
                f"layer looked (mean of heads, bright is much).</p>{body}"
            )
        result.append(_section(title, body))
    return result


def _figure(case: _Case) -> str:
    images = _picture(picture_png(case.picture), f"Picture of class {case.true}")
    if case.attention is not None:
        images += _picture(overlay_png(case.picture, case.attention), "Attention on it")
    said = f"<b>{_text(case.said)}</b> {100 * case.probability:.1f} %"
    if case.said != case.true:
        said += f"; truly {_text(case.true)} {100 * case.true_probability:.1f} %"
    name = _text(Path(case.name).name)
    return (
        f"<figure><div class='pair'>{images}</div>"
        f"<figcaption>{said}<br><span class='quiet'>{name}</span></figcaption></figure>"
    )


def _cost(
    folder: RunFolder,
    recipe: recipes.Recipe,
    rows: list[dict[str, Any]],
    weights: "WeightFile | None",
) -> str:
    facts: list[tuple[str, str]] = []
    if weights is not None:
        assert weights.metadata.preprocessing is not None
        seen = weights.metadata.preprocessing
        macs = multiply_adds(weights.architecture, seen.height, seen.width)
        facts.append(("Parameters", f"{parameter_count(weights.architecture):,}"))
        facts.append(
            (f"Multiply-adds of one picture, {seen.height} x {seen.width}", f"{macs / 1e9:.3f} G")
        )
        path = folder.best if folder.best.is_file() else folder.last
        facts.append(("Weights file", f"{path.stat().st_size / 2**20:.1f} MiB"))
    seconds = [row["seconds"] for row in rows if row.get("kind") == "epoch" and "seconds" in row]
    speeds = [row["pictures_per_second"] for row in rows if "pictures_per_second" in row]
    if seconds:
        facts.append(("Training, evaluation not counted", _hours(sum(seconds))))
        facts.append(("One epoch, median", _hours(float(np.median(seconds)))))
    if speeds:
        facts.append(("Pictures per second in training, median", f"{np.median(speeds):.0f}"))
    facts.append(("Batch", f"{recipe.optim.batch} in {recipe.optim.accumulate} part(s)"))
    facts.append(("Precision", recipe.run.precision))
    return _section("Cost", _table(facts))


def _environment(folder: RunFolder) -> str:
    import json

    try:
        sessions = json.loads(folder.environment.read_text(encoding="utf-8"))["sessions"]
        tables = [_table(_flat(session)) for session in sessions]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return _section("Environment", "<p>Not recorded.</p>")
    heads = [f"<h3>Session {i}</h3>" if len(tables) > 1 else "" for i in range(1, len(tables) + 1)]
    return _section("Environment", "".join(h + t for h, t in zip(heads, tables, strict=True)))


def _flat(session: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in session.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {text}" for name, text in value.items())
        elif isinstance(value, list):
            value = " ".join(map(str, value))
        rows.append((key, str(value)))
    return rows
