"""One self-contained HTML page about a run: recipe, curves, errors, cost, environment."""

import html
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xcite import recipe as recipes
from xcite.canonical import parameter_count
from xcite.control_characters import visible_lines
from xcite.cost import multiply_adds
from xcite.errors import XciteError
from xcite.figures import page
from xcite.figures.attention import attention_maps, overlay_png, patch_size, picture_png
from xcite.figures.confusion import MATRIX, confused_pairs
from xcite.language import tr, translated
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
        _recipe(recipe),
        _environment(folder),
    ]
    write_text(out, page.page(tr("{name}: Xcite run", name=name), parts))


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


def _hours(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return tr("{hours} h {minutes} min", hours=hours, minutes=minutes)
    return tr("{minutes} min {seconds} s", minutes=minutes, seconds=left)


def _head(
    name: str,
    recipe: recipes.Recipe,
    rows: list[dict[str, Any]],
    weights: "WeightFile | None",
    findings: _Findings | None,
) -> str:
    epochs = [row for row in rows if row.get("kind") == "epoch"]
    facts = [(tr("model"), recipe.model.name)]
    if findings:
        accuracy = findings.accuracy
        facts.append(("top-1", f"{accuracy.top1:.2f} %"))
        if accuracy.absent:
            alone = tr("top-1 among the {count} classes present", count=len(accuracy.present))
            facts.append((alone, f"{accuracy.top1_present:.2f} %"))
        facts.append(("top-5", f"{findings.accuracy.top5:.2f} %"))
    if weights is not None:
        facts.append((tr("parameters"), f"{parameter_count(weights.architecture) / 1e6:.2f} M"))
    done = tr("{done} of {epochs}", done=len(epochs), epochs=recipe.optim.epochs)
    facts += [(tr("epochs"), done), (tr("engine"), recipe.run.engine)]
    listed = "".join(
        f"<div><dt>{page.escaped(key)}</dt><dd>{page.escaped(value)}</dd></div>"
        for key, value in facts
    )
    changed = ", ".join(f"{key} {value}" for key, value in recipe.model.overrides().items())
    said = tr("{model} with {changes}", model=recipe.model.name, changes=changed)
    with_ = f"<p class='quiet'>{page.escaped(said)}</p>"
    return (
        f"<header><h1>{page.escaped(name)}</h1><dl class='facts'>{listed}</dl>"
        f"{with_ if changed else ''}</header>\n"
    )


def _altered(folder: RunFolder) -> str:
    """What was changed while the run went on, so that its recipe alone does not give its result."""
    changes = History(folder.history).altered()
    if not changes:
        return ""
    told = "".join(f"<p>{page.escaped(translated(text))}</p>" for text in changes)
    return page.section(tr("Changed on the way"), told)


def _curves(name: str, rows: list[dict[str, Any]]) -> str:
    from xcite.figures.curves import draw_curves

    if not any(row.get("kind") in ("step", "epoch") for row in rows):
        return page.section(tr("Curves"), f"<p>{tr('Nothing was recorded yet.')}</p>")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "curves.png"
        draw_curves({name: rows}, path)
        drawn = path.read_bytes()
    words = tr("Loss, top-1 and learning rate over the epochs")
    last = next((row for row in reversed(rows) if row.get("kind") == "epoch"), None)
    said = f"<p>{_words(last)}</p>" if last else ""
    return page.section(tr("Curves"), page.picture(drawn, words, "wide") + said)


def _words(row: dict[str, Any]) -> str:
    named = {"loss": tr("training loss"), "val_loss": tr("validation loss"), "acc1": "top-1"}
    parts = [
        f"{words} {row[key]:.4g}{' %' if key == 'acc1' else ''}"
        for key, words in named.items()
        if isinstance(row.get(key), int | float)
    ]
    return tr("After epoch {epoch}: {values}.", epoch=row["epoch"], values=", ".join(parts))


def _confusion(findings: _Findings | None, spec: str | None, weights: "WeightFile | None") -> str:
    if findings is None:
        reason = (
            tr("The run has not saved any weights yet.")
            if weights is None
            else tr("The recipe names no validation pictures; give some with --data.")
        )
        return page.section(tr("Accuracy"), f"<p>{reason}</p>")
    accuracy = findings.accuracy
    words = tr(
        "{pictures:,} pictures of {data}: top-1 {top1:.2f} %, top-5 {top5:.2f} %, loss {loss:.4f}.",
        pictures=accuracy.pictures,
        data=translated(Path(findings.data).name),
        top1=accuracy.top1,
        top5=accuracy.top5,
        loss=accuracy.loss,
    )
    if count := len(findings.skipped):
        words += " " + tr("{count} could not be decoded and are left out.", count=count)
    said = f"<p>{page.escaped(words)}</p>"
    if (accuracy.totals > 0).sum() > MATRIX:
        said += _pairs(accuracy)
    elif accuracy.confusion is not None:
        from xcite.figures.confusion import draw_confusion

        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "confusion.png"
            draw_confusion(accuracy, path)
            said += page.picture(path.read_bytes(), tr("Confusion matrix"), "wide")
    rows = [row for row in accuracy.per_class() if row["recall"] is not None]
    rows = sorted(rows, key=lambda row: row["recall"])[:WORST_CLASSES]
    few = len(rows) == len(accuracy.class_names)
    worst = tr("The {count} worst classes, worst first", count=len(rows))
    said += f"<h3>{tr('Classes, worst first') if few else worst}</h3>"
    said += page.table(
        (
            (
                row["class"],
                row["pictures"],
                row["recall"],
                "-" if row["precision"] is None else row["precision"],
            )
            for row in rows
        ),
        (tr("class"), tr("pictures"), tr("recognised, %"), tr("right when said, %")),
    )
    return page.section(tr("Accuracy"), said)


def _pairs(accuracy: "Accuracy") -> str:
    """The most confused pairs of many classes; nothing where pairs were not counted."""
    rows = confused_pairs(accuracy)
    if not rows:
        return ""
    head = (tr("true"), tr("predicted"), tr("pictures"), tr("% of the true class"))
    return f"<h3>{tr('The most confused pairs')}</h3>{page.table(rows, head)}"


def _cases(findings: _Findings | None) -> list[str]:
    if findings is None:
        return []
    result = []
    for title, cases, none in (
        (tr("Most certain and right"), findings.best, tr("No picture was recognised.")),
        (tr("Furthest off"), findings.worst, tr("No picture was mistaken.")),
    ):
        figures = "".join(_figure(case) for case in cases)
        body = f"<div class='pictures'>{figures}</div>" if cases else f"<p>{none}</p>"
        if any(case.attention is not None for case in cases):
            legend = tr(
                "Left what the model saw, right where its last class-attention layer looked "
                "(mean of heads, bright is much)."
            )
            body = f"<p class='quiet'>{legend}</p>{body}"
        result.append(page.section(title, body))
    return result


def _figure(case: _Case) -> str:
    words = tr("Picture of class {name}", name=case.true)
    images = page.picture(picture_png(case.picture), words)
    if case.attention is not None:
        images += page.picture(overlay_png(case.picture, case.attention), tr("Attention on it"))
    said = f"<b>{page.name(case.said)}</b> {100 * case.probability:.1f} %"
    if case.said != case.true:
        share = 100 * case.true_probability
        said += tr("; truly {name} {share:.1f} %", name=page.name(case.true), share=share)
    name = page.escaped(Path(case.name).name)
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
        facts.append((tr("Parameters"), f"{parameter_count(weights.architecture):,}"))
        what = tr(
            "Multiply-adds of one picture, {height} x {width}",
            height=seen.height,
            width=seen.width,
        )
        facts.append((what, f"{macs / 1e9:.3f} G"))
        path = folder.best if folder.best.is_file() else folder.last
        facts.append((tr("Weights file"), f"{path.stat().st_size / 2**20:.1f} MiB"))
    seconds = [row["seconds"] for row in rows if row.get("kind") == "epoch" and "seconds" in row]
    speeds = [row["pictures_per_second"] for row in rows if "pictures_per_second" in row]
    if seconds:
        facts.append((tr("Training, evaluation not counted"), _hours(sum(seconds))))
        facts.append((tr("One epoch, median"), _hours(float(np.median(seconds)))))
    if speeds:
        facts.append((tr("Pictures per second in training, median"), f"{np.median(speeds):.0f}"))
    parts = recipe.optim.accumulate
    batch = tr("{pictures} in {parts} part(s)", pictures=recipe.optim.batch, parts=parts)
    facts += [(tr("Batch"), batch), (tr("Precision"), recipe.run.precision)]
    return page.section(tr("Cost"), page.table(facts))


def _recipe(recipe: recipes.Recipe) -> str:
    text = html.escape(visible_lines(recipes.dump(recipe)))
    return page.section(tr("Recipe"), f"<pre>{text}</pre>")


def _environment(folder: RunFolder) -> str:
    import json

    try:
        sessions = json.loads(folder.environment.read_text(encoding="utf-8"))["sessions"]
        tables = [page.table(_flat(session)) for session in sessions]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return page.section(tr("Environment"), f"<p>{tr('Not recorded.')}</p>")
    several = len(tables) > 1
    heads = [
        f"<h3>{tr('Session {number}', number=number)}</h3>" if several else ""
        for number in range(1, len(tables) + 1)
    ]
    return page.section(
        tr("Environment"), "".join(h + t for h, t in zip(heads, tables, strict=True))
    )


def _flat(session: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in session.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {text}" for name, text in value.items())
        elif isinstance(value, list):
            value = " ".join(map(str, value))
        rows.append((key, str(value)))
    return rows
