"""Hostile and damaged files end in one clear error, quickly, and leave no trace."""

import contextlib
import io
import os
import pickle
import resource
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weight_mutations import TINY_XCIT, damaged, outcome, program, seeds
from weight_samples import unpack

from xcite.canonical import initial_weights
from xcite.errors import XciteError
from xcite.weights import open_weights
from xcite.weights.dialects import express
from xcite.weights.pickle_globals import NUMPY_GLOBALS, PickleError
from xcite.weights.pickles import read_pickle

TRACE = Path("/tmp/xcit_pwned")  # what the samples' payloads would create
HOSTILE = [
    "evil.pth", "evil_legacy.pth", "evil_with_weights.pth", "evil.pdparams",
    "evil_dotted.pdparams", "evil_eval.pdparams", "evil_protocol2.pdparams",
]  # fmt: skip
DAMAGED = {
    "xcit_shrunk_empty.pdparams": "is empty",
    "xcit_shrunk_official_legacy_truncated.pth": "end too early",
    "xcit_shrunk_official_truncated.pth": "cut short",
    "xcit_shrunk_passl_epoch_1_truncated.pd": "end too early",
    "xcit_shrunk_passl_truncated.pdparams": "end too early",
    "xcit_shrunk_ppcls_truncated.pdparams": "end too early",
    "xcit_shrunk_timm_truncated.safetensors": "not a sound safetensors file",
    "xcit_shrunk_timm_header_huge.safetensors": "header claims",
    "xcit_shrunk_timm_header_truncated.safetensors": "header claims",
}


@pytest.fixture(scope="session")
def samples(tmp_path_factory):
    return unpack(tmp_path_factory.mktemp("hostile_samples"))


@pytest.fixture(scope="session")
def whole_files(tmp_path_factory):
    return seeds(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_executed(samples, name):
    TRACE.unlink(missing_ok=True)
    with pytest.raises(XciteError, match="which weights do not need; nothing of it was executed"):
        open_weights(samples / name)
    assert not TRACE.exists()


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused(samples, name):
    with pytest.raises(XciteError, match=DAMAGED[name]):
        open_weights(samples / name)


def read(data):
    return read_pickle(io.BytesIO(data), len(data))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (pickle.dumps(print), "builtins.print"),
        (b"\x80\x04\x8c\x05numpy\x8c\x09ndarray.T\x93.", "ndarray.T"),
        (b"\x80\x04\x8c\x00\x8c\x05numpy\x93.", "asks for"),
        (b"\x80\x02cnumpy\nndarray\n(K\x02tR.", "called directly"),
        (b"\x80\x02K\x01)R.", "other than a known global is called"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.", "end too early"),
        (b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"x.", "end too early"),
        (b"\x80\x02(ios\nsystem\n.", "0x69"),  # INST
        (b"\x80\x02\x82\x01.", "0x82"),  # EXT1
        (b"\x80\x02\x8b\xff\xff\xff\x7f.", "a number of 2147483647 bytes"),  # LONG4
        (b"\x80\x02Nb.", "the stack is empty"),
        (b"\x80\x02j\xff\xff\xff\xff.", "remembered object is missing"),
        (b"\x80\x02}(]K\x01u.", "dictionary's key is list"),
        (b"\x80\x02}X\x01\x00\x00\x00aQ.", "outside data"),
        (b"\x80\x00.", "protocol 0"),
        (b"\x80\x02NN.", "left over"),
        (b"\x80\x02N", "end too early"),
    ],
)
def test_instructions_outside_the_short_list_are_refused(data, said):
    with pytest.raises(PickleError, match=said):
        read(data)


def array_pickle(shape, numbers, dtype="f4"):
    """A pickled array with a shape of our choice."""
    tensors = pickle.dumps(np.zeros(1, np.float32), 2)
    assert b"(K\x01K\x01\x85" in tensors  # version 1, shape (1,)
    body = b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in shape) + b"t"
    return (
        b"\x80\x03}X\x01\x00\x00\x00acnumpy.core.multiarray\n_reconstruct\n"
        b"(cnumpy\nndarray\nK\x00\x85C\x01btR(K\x01" + body + b"cnumpy\ndtype\n(X\x02\x00\x00\x00"
        + dtype.encode() + b"\x89\x88tR(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff"
        b"\xffK\x00tb\x89B" + struct.pack("<I", len(numbers)) + numbers + b"tbs."
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((2**40,), "comes with 4 bytes"),
        ((2**47, 2**47, 2**47), "comes with"),
        ((-1,), "other than sizes"),
    ],
)
def test_a_huge_claimed_shape_allocates_nothing(tmp_path, shape, said):
    path = tmp_path / "huge.pdparams"
    path.write_bytes(array_pickle(shape, b"\0" * 4))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(XciteError, match=said):
        open_weights(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 20_000  # KiB


def test_arrays_of_objects_are_no_weights():
    assert read(array_pickle((1,), b"\0" * 8, dtype="O8"))["a"].tensor is None
    assert read(array_pickle((1,), b"\0" * 4))["a"].tensor.shape == (1,)


def test_deep_nesting_ends_soon(tmp_path):
    path = tmp_path / "deep.pdparams"
    path.write_bytes(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".")
    start = time.monotonic()
    with pytest.raises(XciteError):
        open_weights(path)
    path.write_bytes(b"\x80\x02" + b"}" * 1_000_000 + b".")
    with pytest.raises(XciteError, match="more than 500000 instructions"):
        open_weights(path)
    assert time.monotonic() - start < 20


def test_tensors_may_not_share_bytes(tmp_path):
    """A small file whose tensors all show the same bytes would grow without limit when read."""
    numbers = np.zeros(4096, np.float32)
    path = tmp_path / "shared.pdparams"
    path.write_bytes(pickle.dumps({f"blocks.{i}.gamma1": numbers for i in range(100)}, 4))
    with pytest.raises(XciteError, match="claim 1638400 bytes, the file has"):
        open_weights(path)


def rewrite_zip(path, change, method=zipfile.ZIP_STORED):
    """A `.pth` with its members passed through ``change(name, data)``."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", method) as new:
        for name, data in change(members).items():
            new.writestr(name, data)


@pytest.fixture
def torch_file(whole_files, tmp_path):
    path = tmp_path / "xcit_official.pth"
    path.write_bytes(whole_files[path.name])
    assert open_weights(path).dialect == "official"
    return path


def test_a_zip_bomb_is_refused(torch_file):
    rewrite_zip(torch_file, lambda members: members, zipfile.ZIP_DEFLATED)
    with pytest.raises(XciteError, match="compressed or encrypted"):
        open_weights(torch_file)


def test_zip_members_of_the_wrong_size_are_refused(torch_file):
    rewrite_zip(
        torch_file,
        lambda members: {
            n: d + b"\0" * 4 if n.endswith("/data/0") else d for n, d in members.items()
        },
    )
    with pytest.raises(XciteError, match="storage '0' has 20 bytes, its tensors claim 16"):
        open_weights(torch_file)


def test_path_tricks_write_nothing(torch_file, tmp_path):
    rewrite_zip(torch_file, lambda members: {**members, "../../escaped": b"x"})
    present = sorted(os.listdir(tmp_path))
    assert open_weights(torch_file).dialect == "official"  # never unpacked, so never written
    assert sorted(os.listdir(tmp_path)) == present
    rewrite_zip(torch_file, lambda members: {**members, "other/data.pkl": b"\x80\x02}."})
    with pytest.raises(XciteError, match="not one that PyTorch writes"):
        open_weights(torch_file)


def test_a_flipped_bit_in_the_numbers_is_found(torch_file):
    data = bytearray(torch_file.read_bytes())
    weights = express(initial_weights(TINY_XCIT), "official", TINY_XCIT)
    at = data.index(weights["cls_token"].tobytes())
    data[at] ^= 1
    torch_file.write_bytes(data)
    with pytest.raises(XciteError, match="checksum is wrong"):
        open_weights(torch_file)


def test_expanded_views_are_refused(torch_file):
    """Strides of 0 make a large tensor of a few numbers."""
    with zipfile.ZipFile(torch_file) as archive:
        root = archive.namelist()[0].split("/")[0]
        program = archive.read(f"{root}/data.pkl")
    shape = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in (1, 1, 4)) + b"t"
    assert program.count(shape) == 1  # cls_token
    large = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in (10**9, 1, 4)) + b"t"
    strides = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in (0, 4, 1)) + b"t"
    at = program.index(shape) + len(shape)
    program = program[: at - len(shape)] + large + strides + program[at + len(strides) :]
    rewrite_zip(
        torch_file,
        lambda members: {n: program if n.endswith("data.pkl") else d for n, d in members.items()},
    )
    with pytest.raises(XciteError, match="reaches beyond its storage"):
        open_weights(torch_file)


def test_no_global_of_the_table_is_a_stranger():
    """Every function a pickle can reach is ours."""
    assert {function.__module__ for function in NUMPY_GLOBALS.values()} == {
        "xcite.weights.pickle_globals"
    }


quick = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@quick
@given(seed=st.integers(0, 2**32), which=st.integers(0, 100))
def test_damaged_files_never_surprise(whole_files, tmp_path, seed, which):
    files = list(whole_files.values())
    data = damaged(files[which % len(files)], np.random.default_rng(seed), files)
    outcome(tmp_path / "damaged", data)


@quick
@given(data=st.binary(max_size=300))
def test_any_bytes_end_in_an_answer_or_an_error(data):
    with contextlib.suppress(XciteError):
        read(b"\x80\x04" + data + b".")


@quick
@given(seed=st.integers(0, 2**32))
def test_made_up_pickles_never_surprise(tmp_path, seed):
    assert outcome(tmp_path / "made_up", program(np.random.default_rng(seed))) == "refused"


@pytest.mark.slow
def test_a_hundred_thousand_cases(whole_files, samples, tmp_path):
    """By hand: pytest -m slow tests/golden/test_hostile_weights.py -s

    XCITE_FUZZ_FIRST and XCITE_FUZZ_CASES choose other cases, or a share for each of several
    processes.
    """
    first = int(os.environ.get("XCITE_FUZZ_FIRST", "0"))
    cases = int(os.environ.get("XCITE_FUZZ_CASES", "100000"))
    small = list(whole_files.values())
    large = [(samples / name).read_bytes() for name in ("xcit_shrunk_official.pth", *HOSTILE)]
    counts = {"read": 0, "refused": 0}
    slowest = 0.0
    TRACE.unlink(missing_ok=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in range(first, first + cases):
        random = np.random.default_rng(case)
        kind = random.random()
        if kind < 0.3:
            data = program(random)
        else:
            files = small if kind < 0.97 else large
            data = damaged(files[int(random.integers(0, len(files)))], random, small)
        start = time.monotonic()
        counts[outcome(tmp_path / "case", data)] += 1
        slowest = max(slowest, time.monotonic() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{cases} cases: {counts}, slowest {slowest:.2f} s, memory grew {grown:.0f} MiB")
    assert counts["read"] > 0
    assert not TRACE.exists()
    assert grown < 200
