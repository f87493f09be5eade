"""scikit-learn's handwritten digits."""

from collections.abc import Iterable, Sequence

import numpy as np

from xcite.data.sources.source import Found, Names, fingerprint
from xcite.errors import XciteError


class Digits:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; one in five is held out.

    The split is stratified and always the same; it does not depend on a run's seed.
    """

    notes: Sequence[str] = ()

    def __init__(self, split: str, channels: int, classes: list[str] | None) -> None:
        if split not in ("train", "validation"):
            raise XciteError(f"digits have the splits train and validation, not {split!r}")
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise XciteError(
                "the digits come with scikit-learn: pip install 'xcite[demo]'"
            ) from error
        values, digits = load_digits(return_X_y=True)  # (1797, 64) floats 0..16, (1797,)
        held_out = np.zeros(len(digits), bool)
        rng = np.random.default_rng(0)
        for digit in range(10):
            members = rng.permutation(np.flatnonzero(digits == digit))
            held_out[members[: round(len(members) / 5)]] = True
        chosen = np.flatnonzero(held_out == (split == "validation"))
        pixels = np.round(values[chosen] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        self.class_names = [str(digit) for digit in range(10)]
        if classes is not None and classes != self.class_names:
            raise XciteError(f"digits: the classes are 0 to 9, not {', '.join(classes[:5])}, ...")
        self.labels = digits[chosen].astype(np.int64)
        self._pixels = np.repeat(pixels, channels, axis=3)
        self._numbers = chosen
        self._split = split
        self.found = Found()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> np.ndarray:
        return self._pixels[index]

    def name(self, index: int) -> str:
        return f"digits:{self._split}/{self._numbers[index]}"

    def files(self) -> Iterable[str]:
        return ()

    def fingerprint(self) -> str:
        names = Names(str(number) for number in self._numbers)
        return fingerprint(names, self.labels, self.class_names)
