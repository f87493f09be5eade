"""Every family's own files are known by their names alone."""

import pytest

from xcite.alignment.trial import moved_weights
from xcite.families import Architecture
from xcite.variants import EfficientNetLiteArchitecture, RegNetArchitecture, XCiTArchitecture
from xcite.weights import Metadata, open_weights, save_weights
from xcite.weights.opening import recognise_weights

SMALL = [
    XCiTArchitecture(patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=4),
    XCiTArchitecture(patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=0),
    RegNetArchitecture(8, 8.0, 2.0, 4, depth=4, stem_width=8, num_classes=4),
    RegNetArchitecture(8, 8.0, 2.0, 4, depth=4, stem_width=8, num_classes=0),
    EfficientNetLiteArchitecture(
        widths=(8, 8, 16, 16, 24, 32, 40), depths=(1, 1, 1, 1, 1, 1, 1), features=32, num_classes=4
    ),
    EfficientNetLiteArchitecture(
        widths=(8, 8, 16, 16, 24, 32, 40), depths=(1, 1, 1, 1, 1, 1, 1), features=32, num_classes=0
    ),
]


@pytest.mark.parametrize("architecture", SMALL, ids=lambda a: f"{a.kind}-{a.num_classes}")
@pytest.mark.parametrize("named", [True, False])
def test_a_file_of_our_own_is_recognised_and_read(
    architecture: Architecture, named: bool, tmp_path
) -> None:
    weights = moved_weights(architecture, seed=3)
    metadata = Metadata(architecture=architecture) if named else None
    if named:
        save_weights(tmp_path / "own.safetensors", weights, metadata)
    else:
        from safetensors.numpy import save_file

        save_file(weights, tmp_path / "own.safetensors")
    found = recognise_weights(tmp_path / "own.safetensors")
    assert found.dialect == "xcite" or not named
    assert found.architecture.same_tensors(architecture)
    read = open_weights(tmp_path / "own.safetensors").tensors
    assert read.keys() == weights.keys()
    assert all((read[name] == value).all() for name, value in weights.items())
