"""Pictures of a source under labels of somebody else's list of classes."""

from collections.abc import Iterable, Sequence

import numpy as np

from xcite.data.sources import Source


class Relabelled:
    """Another source's pictures whose labels are places in ``class_names``."""

    def __init__(self, source: Source, places: np.ndarray, class_names: Sequence[str]) -> None:
        """``places``: int64, for each class of ``source`` its place in ``class_names``."""
        self._source = source
        self.class_names = list(class_names)
        self.labels = places[source.labels]
        self.notes = source.notes
        self.found = source.found

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes | np.ndarray:
        return self._source.read(index)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def fingerprint(self) -> str:
        return self._source.fingerprint()

    def files(self) -> Iterable[str]:
        return self._source.files()
