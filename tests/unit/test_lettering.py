"""Names of every script in pictures: drawn, or transliterated with a note, never as boxes."""

import warnings

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from xcite.alignment.comparison import ACTIVATIONS, Report, Row
from xcite.evaluation.accuracy import Counter
from xcite.figures import lettering as fonts
from xcite.figures.alignment import draw_alignment
from xcite.figures.attention import Explanation, draw_attention, draw_channels
from xcite.figures.confusion import confused_pairs, draw_confusion
from xcite.figures.curves import draw_curves
from xcite.figures.lettering import lettering, transliterate

NAMES = [
    *("猫", "いぬ", "고양이", "قطة", "שלום", "हिन्दी", "ไทย", "🐞 bug", "é\u0301tude"),
    *("$a_b$", "price $5", r"back\$lash$", "_hidden", "<b>bold</b> & co", "%s {x}"),
    *("x\ny\u202e", "caf\udce9", "\ue000private", "\u200d", "a" * 90, "非常长的名称" * 9, ""),
]
ROWS = [
    {"kind": "epoch", "epoch": e, "step": 9 * e, "loss": 1 / e, "acc1": 9.0 * e, "lr": 0.1}
    for e in (1, 2, 3)
]

ALIGNMENT = Report(
    model="模型 $m$",
    sides=["甲 $a_1$", "_乙"],
    rows=[Row(ACTIVATIONS, "组$g$", 1.0, 1.0, False)],
    groups=["组$g$"],
    losses={"甲 $a_1$": [1.0, 0.5], "_乙": [1.0, 0.5]},
    first_diverging="组$g$",
)


@pytest.fixture(autouse=True)
def _nothing_is_said(capfd):
    """A missing glyph is a warning, and matplotlib's remarks on fonts go to standard error."""
    fonts._families.cache_clear()
    fonts._fonts.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert capfd.readouterr().err == ""
    fonts._families.cache_clear()
    fonts._fonts.cache_clear()


@pytest.fixture
def no_fonts(monkeypatch):
    """As on a machine that has matplotlib's own fonts alone."""
    own = [e for e in font_manager.fontManager.ttflist if "matplotlib" in str(e.fname)]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    monkeypatch.setattr(fonts, "_of_extra", list)


@pytest.fixture
def cjk():
    pytest.importorskip("noto_cjk_sans_otc")


def _accuracy(names, pictures=600):
    random = np.random.default_rng(3)
    count = len(names)
    labels = random.integers(0, count, pictures)
    logits = random.normal(size=(pictures, count))
    logits[np.arange(pictures), labels] += 2
    counter = Counter(names)
    counter.add(logits, labels)
    return counter.result()


def _draw_all(folder):
    draw_confusion(_accuracy(NAMES), folder / "confusion.png", title="模型 $x_1$")
    thousand = [f"{i} {NAMES[i % len(NAMES)]}" for i in range(1000)]
    draw_confusion(_accuracy(thousand, 2000), folder / "pairs.png")
    draw_curves({"运行 $x_1$": ROWS, "_b": ROWS}, folder / "curves.png")
    draw_alignment(ALIGNMENT, folder / "alignment.png")
    for number, name in enumerate(NAMES[::4]):
        explanation = Explanation(
            picture=np.zeros((8, 8, 3), np.uint8),
            classes=np.ones((1, 1, 2, 2), np.float32),
            own=np.ones((1, 1), np.float32),
            channels=[np.ones((1, 2, 2), np.float32)],
            probabilities=np.ones(1),
            label=name,
            occlusion=None,
        )
        draw_attention(explanation, folder / f"attention{number}.png")
    draw_channels(explanation, folder / "channels.png")
    for path in folder.glob("*.png"):
        with Image.open(path) as drawn:
            assert drawn.width < 2500, path


def test_every_picture_with_the_fonts_of_this_machine(tmp_path):
    _draw_all(tmp_path)


def test_every_picture_without_any_font(tmp_path, no_fonts):
    _draw_all(tmp_path)


def test_every_picture_in_chinese(tmp_path, monkeypatch):
    monkeypatch.setenv("XCITE_LANG", "zh")
    _draw_all(tmp_path)


def test_without_fonts_names_are_transliterated_and_the_picture_says_so(no_fonts):
    with lettering(NAMES) as letters:
        assert letters("price <5>") == "price <5>"
        assert not letters.transliterated
        assert letters("猫") == "Mao"
        assert letters("北京 bus") == "北京 bus"  # not among the names, so not looked at
        assert letters.transliterated
        assert letters("いぬ") == "inu"
        assert letters("قطة") == "\u2068قطة\u2069"  # matplotlib's own font has Arabic
        assert letters("\ue000private") == r"\ue000private"
        assert letters("caf\udce9") == r"caf\udce9"
        assert letters("$a$") == r"\$a\$"


def test_with_a_font_names_stay_as_they_are(cjk):
    with lettering(NAMES) as letters:
        for name in ("猫", "いぬ", "고양이", "非常"):
            assert letters(name) == name
        assert not letters.transliterated


def test_the_note_is_in_the_picture_only_where_it_is_true(no_fonts):
    from matplotlib.figure import Figure

    for name, noted in (("猫", True), ("cat", False)):
        with lettering([name]) as letters:
            figure = Figure()
            letters(name)
            letters.note(figure)
        assert bool(figure.get_supxlabel()) == noted


def test_own_words_are_english_where_no_font_has_chinese(no_fonts, monkeypatch):
    monkeypatch.setenv("XCITE_LANG", "zh")
    with lettering(["a"]) as letters:
        assert letters.tr("best {top:.2f} %", top=1) == "best 1.00 %"


def test_own_words_are_chinese_where_a_font_has_it(cjk, monkeypatch):
    monkeypatch.setenv("XCITE_LANG", "zh")
    with lettering(["a"]) as letters:
        assert letters.tr("best {top:.2f} %", top=1) == "最好 1.00 %"


def test_a_font_installed_later_and_a_damaged_one(cjk, no_fonts, monkeypatch, tmp_path):
    """Matplotlib's list of fonts is older than both."""
    import noto_cjk_sans_otc

    damaged = tmp_path / "damaged.ttf"
    damaged.write_bytes(b"no font")
    later = [str(damaged), str(noto_cjk_sans_otc.FONT_PATH)]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: later)
    with lettering(["猫"]) as letters:
        assert letters("猫") == "猫"


def test_a_font_that_was_removed_is_passed_over(no_fonts, monkeypatch):
    gone = font_manager.FontEntry(fname="/nowhere/gone.ttf", name="Gone Sans", weight=400)
    own = font_manager.fontManager.ttflist
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*own, gone])
    with lettering(["猫"]) as letters:
        assert letters("猫") == "Mao"


def test_japanese_gets_japanese_shapes(cjk):
    assert "Noto Sans CJK JP" in fonts._families(frozenset("犬ね"))[0]
    assert "Noto Sans CJK SC" in fonts._families(frozenset("犬"))[0]


def test_transliteration_joins_runs():
    assert transliterate("北京-bus", set("北京")) == "BeiJing-bus"
    assert transliterate("a\u200db", {"\u200d"}) == "ab"


def test_settings_of_matplotlib_are_as_before():
    import matplotlib

    before = dict(matplotlib.rcParams)
    with lettering(["猫"]):
        pass
    assert dict(matplotlib.rcParams) == before


def _said(draw, monkeypatch):
    """Every text of the figure that ``draw`` saves."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    kept = []
    save = Figure.savefig

    def keep(figure, *arguments, **options):
        save(figure, *arguments, **options)
        kept.extend(text.get_text() for text in figure.findobj(Text))

    monkeypatch.setattr(Figure, "savefig", keep)
    draw()
    return kept


def test_runs_that_begin_with_an_underscore_are_in_the_legend(tmp_path, monkeypatch):
    runs = {"_one": ROWS, "two$x$": ROWS}
    said = _said(lambda: draw_curves(runs, tmp_path / "c.png"), monkeypatch)
    assert "_one: training" in said
    assert r"two\$x\$: training" in said
    said = _said(lambda: draw_alignment(ALIGNMENT, tmp_path / "a.png"), monkeypatch)
    assert {"_乙", "_Yi"} & set(said)


def test_runs_with_the_same_long_beginning_stay_apart(tmp_path, monkeypatch):
    runs = {"r" * 90 + end: ROWS for end in ("first", "second")}
    said = _said(lambda: draw_curves(runs, tmp_path / "c.png"), monkeypatch)
    assert len({text for text in said if text.endswith(": training")}) == 2


def test_many_classes_give_the_most_confused_pairs(tmp_path, monkeypatch):
    counts = np.diag(np.full(50, 10))
    counts[3, 7] = 6
    counts[8, 2] = 2
    accuracy = _counted(counts)
    assert confused_pairs(accuracy) == [("c3", "c7", 6, 37.5), ("c8", "c2", 2, 100 / 6)]
    said = _said(lambda: draw_confusion(accuracy, tmp_path / "p.png"), monkeypatch)
    assert said.index("c3 → c7") < said.index("c8 → c2")
    assert "6 (38 %)" in said


def test_right_to_left_names_do_not_turn_a_pair_round():
    """The first name of "true → predicted" stands left, in whatever script."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def ink(text):
        figure = Figure((4, 0.5))
        canvas = FigureCanvasAgg(figure)
        figure.text(0, 0.3, text)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., 0] < 128

    with lettering(["שלום", "WWWWW"]) as letters:
        alone = ink(letters("שלום"))
        end = np.flatnonzero(alone.any(axis=0)).max() + 1
        pair = ink(f"{letters('שלום')} → {letters('WWWWW')}")
    np.testing.assert_array_equal(pair[:, :end], alone[:, :end])


def test_many_classes_without_a_mistake(tmp_path, monkeypatch):
    accuracy = _counted(np.diag(np.full(50, 10)))
    said = _said(lambda: draw_confusion(accuracy, tmp_path / "p.png"), monkeypatch)
    assert "no class was taken for another" in said


def test_few_classes_with_pictures_among_many_give_a_matrix(tmp_path, monkeypatch):
    counts = np.zeros((1000, 1000), int)
    counts[5, 5], counts[5, 900], counts[6, 6] = 8, 2, 9
    said = _said(lambda: draw_confusion(_counted(counts), tmp_path / "m.png"), monkeypatch)
    assert {"c5", "c6", "(others)", "2"} <= set(said)
    assert "c900" not in said


def test_more_classes_than_are_counted_in_pairs(tmp_path, monkeypatch):
    accuracy = _accuracy([f"c{i}" for i in range(4200)], 300)
    assert accuracy.confusion is None
    assert confused_pairs(accuracy) == []
    said = _said(lambda: draw_confusion(accuracy, tmp_path / "l.png"), monkeypatch)
    assert "the classes recognised least of 4,200" in said


def _counted(counts):
    """An accuracy with this confusion matrix."""
    counter = Counter([f"c{i}" for i in range(len(counts))])
    rows, columns = np.nonzero(counts)
    times = counts[rows, columns]
    logits = np.zeros((times.sum(), len(counts)))
    logits[np.arange(len(logits)), np.repeat(columns, times)] = 1
    counter.add(logits, np.repeat(rows, times))
    return counter.result()
