"""The sample weight files of other programs; their numbers follow `reference_rule`."""

import lzma
import tarfile
from functools import cache
from pathlib import Path

from reference_rule import reference_weights
from xcite.variants import RegNetArchitecture, XCiTArchitecture

FIXTURES = Path(__file__).parents[1] / "fixtures/weights"

# The nets the samples were written from.
XCIT = XCiTArchitecture(
    patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10, tokens_norm=False
)
REGNET = RegNetArchitecture(w0=16, wa=16.0, wm=1.6, group_size=8, depth=5, num_classes=10)


def unpack(folder):
    """All sample files, in ``folder``."""
    for name in ("xcit.tar.xz", "regnet.tar.xz"):
        with lzma.open(FIXTURES / name) as packed, tarfile.open(fileobj=packed) as archive:
            archive.extractall(folder, filter="data")
    return folder


@cache
def reference(architecture):
    """Canonical weights of a sample net."""
    return reference_weights(architecture, seed=0)
