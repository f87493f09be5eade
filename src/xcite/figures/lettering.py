"""How texts are written in a picture: in fonts that have their letters, or in Latin letters.

Matplotlib's own font knows Latin, Greek, Cyrillic, Arabic and Hebrew. For other scripts a font of
the machine is looked for, or that of the extra 'fonts'. Without any, letters are transliterated,
and the picture says so.
"""

import functools
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from xcite import language
from xcite.control_characters import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontEntry
    from matplotlib.ft2font import FT2Font

# Fonts that claim every character and draw boxes, and those that matplotlib cannot draw.
_UNFIT = ("last resort", "lastresort", "adobe blank", "adobeblank", "color emoji", "colour emoji")

_RIGHT_TO_LEFT = {"R", "AL"}
_direction = unicodedata.bidirectional


class Lettering:
    """What texts become in one picture; a `lettering` block makes it.

    Attributes:
        transliterated: whether a name had letters that no font has.
    """

    def __init__(self, missing: set[str], own: bool) -> None:
        self._missing = missing
        self._own = own
        self.transliterated = False

    def __call__(self, name: object, most: int | None = None) -> str:
        """A stranger's text as it can be drawn: nothing acts, nothing is taken for a formula.

        Args:
            most: columns; what is wider ends in an ellipsis.
        """
        text = visible(name)
        if self._missing.intersection(text):
            self.transliterated = True
            text = transliterate(text, self._missing)
        if most is not None:
            text = language.shortened(text, most)
        text = text.replace("$", r"\$")
        # Apart, or Arabic and Hebrew would turn round what stands beside them: "true → predicted".
        return f"\u2068{text}\u2069" if _RIGHT_TO_LEFT.intersection(map(_direction, text)) else text

    def tr(self, template: str, **values: Any) -> str:
        """Words of the picture itself: English where no font has the language's letters."""
        if self._own:
            return language.tr(template, **values)
        return template.format(**values)

    def note(self, figure: "Figure") -> None:
        """Say below the picture that names were transliterated, if they were."""
        if self.transliterated:
            said = self.tr("No font here has all letters of the names; some are transliterated.")
            if not _of_extra():
                said += " " + self.tr(
                    "For Chinese, Japanese and Korean: pip install 'xcite[fonts]'"
                )
            figure.supxlabel(said, fontsize=8, color="0.35")


@contextmanager
def lettering(names: Iterable[object]) -> Iterator[Lettering]:
    """Fonts for a picture with these names; it must be made and saved inside the block."""
    import matplotlib

    needed = set().union(*map(visible, names))
    own = language.letters()
    families, lacking = _families(frozenset(needed | own))
    with matplotlib.rc_context({"font.family": families}):
        yield Lettering(set(lacking), own.isdisjoint(lacking))


def transliterate(text: str, missing: set[str]) -> str:
    """``text`` with the letters in ``missing`` written in ASCII, runs of them together."""
    from anyascii import anyascii

    result, run = [], ""
    for letter in f"{text}\0":
        if letter in missing:
            run += letter
            continue
        if run:
            result.append(anyascii(run) or "".join(map(_unspeakable, run)))
            run = ""
        result.append(letter)
    return "".join(result)[:-1]


def _unspeakable(letter: str) -> str:
    """Joiners and accents say nothing alone; private characters are shown by their number."""
    return "" if unicodedata.category(letter) in ("Cf", "Mn", "Me") else f"\\u{ord(letter):04x}"


@functools.lru_cache(maxsize=64)
def _families(letters: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Font families in the order to try them, and the letters that none of them has."""
    import matplotlib

    families = list(matplotlib.rcParams["font.family"])
    missing = _beyond_usual(letters)
    fonts = _fonts() if missing else {}
    while missing:
        # Japanese draws some Chinese characters in another way.
        suffix = "JP" if any("\u3040" <= letter <= "\u30ff" for letter in letters) else "SC"
        has = {name: _has(entry, missing) for name, entry in fonts.items()}
        best = max(
            has,
            key=lambda name: (len(has[name]), name.endswith(suffix), "sans" in name.lower()),
            default=None,
        )
        if best is None or not has[best]:
            break
        families.append(best)
        missing -= has[best]
        fonts = {name: entry for name, entry in fonts.items() if has[name]}
    return families, missing


def _beyond_usual(letters: frozenset[str]) -> frozenset[str]:
    """Those of the letters that matplotlib's usual font lacks."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    drawn = frozenset(letter for letter in letters if not letter.isspace())
    return drawn - _covered(font, drawn)


def _covered(font: "FT2Font", letters: frozenset[str]) -> frozenset[str]:
    """The letters that a font has; private characters mean something else in each font."""
    return frozenset(
        letter
        for letter in letters
        if font.get_char_index(ord(letter)) and unicodedata.category(letter) != "Co"
    )


def _has(entry: "FontEntry", letters: frozenset[str]) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(entry.fname, face_index=entry.index)
    except (OSError, RuntimeError, ValueError):  # removed since, or damaged
        return frozenset()
    return _covered(font, letters) if font.scalable else frozenset()


@functools.cache
def _fonts() -> dict[str, "FontEntry"]:
    """The upright fonts of usual weight that this machine has, one for each family."""
    from matplotlib.font_manager import findSystemFonts, fontManager, weight_dict

    known = {entry.fname for entry in fontManager.ttflist}
    # Matplotlib lists fonts once and keeps the list, so later ones are unknown to it.
    for path in sorted({*findSystemFonts(), *_of_extra()} - known):
        try:
            fontManager.addfont(path)
        except (OSError, RuntimeError, ValueError):
            continue  # not a font that matplotlib can read
    fonts: dict[str, FontEntry] = {}
    for entry in fontManager.ttflist:
        weight = weight_dict.get(str(entry.weight), entry.weight)
        usual = entry.style == "normal" and isinstance(weight, int) and 300 <= weight <= 500
        if usual and not any(word in entry.name.lower() for word in _UNFIT):
            fonts.setdefault(entry.name, entry)
    return fonts


def _of_extra() -> list[str]:
    """The font that comes with the extra 'fonts'."""
    try:
        import noto_cjk_sans_otc
    except ModuleNotFoundError:
        return []
    return [str(noto_cjk_sans_otc.FONT_PATH)]
