"""What is tolerated beside weights is only named; what executes in intent is refused everywhere."""

import contextlib
import io
import pickle
import resource
import struct
import time

import numpy as np
import pytest
from weight_mutations import TINY_XCIT, company, float8_file

from xcite.canonical import initial_weights
from xcite.errors import XciteError
from xcite.weights import open_weights
from xcite.weights.dialects import express
from xcite.weights.inert_objects import Inert, is_tolerated
from xcite.weights.pickle_globals import PickleError
from xcite.weights.pickles import read_pickle
from xcite.weights.stored import StoredTensor, float8_values

FORBIDDEN = [
    ("os", "system"), ("posix", "system"), ("nt", "system"), ("subprocess", "Popen"),
    ("subprocess", "check_output"), ("builtins", "eval"), ("builtins", "exec"),
    ("builtins", "getattr"), ("builtins", "__import__"), ("builtins", "open"),
    ("builtins", "compile"), ("builtins", "type"), ("builtins", "print"), ("__builtin__", "eval"),
    ("importlib", "import_module"), ("sys", "exit"), ("socket", "socket"), ("shutil", "rmtree"),
    ("ctypes", "CDLL"), ("pickle", "loads"), ("_pickle", "loads"), ("marshal", "loads"),
    ("runpy", "run_path"), ("code", "InteractiveInterpreter"), ("webbrowser", "open"),
    ("operator", "attrgetter"), ("operator", "methodcaller"), ("_operator", "itemgetter"),
    ("collections", "namedtuple"), ("types", "FunctionType"), ("types", "CodeType"),
    ("torch", "load"), ("torch.hub", "load"), ("torch.storage", "_load_from_bytes"),
    ("torch.serialization", "load"), ("torch.serialization", "os.system"),
    ("torch.jit", "load"), ("torch.fx.graph_module", "reduce_graph_module"),
    ("torch.package", "PackageImporter"), ("torch.utils.cpp_extension", "load"),
    ("torch.utils.data", "os.System"), ("torch.nn.modules.os", "System"),
    ("torch.distributed.subprocess", "Popen"), ("torch.distributed", "Popen"),
    ("timm.models.hub", "Loader"), ("timm.utils", "os"), ("timm.models", "load_checkpoint"),
    ("transformers.utils.importlib", "Thing"), ("transformers", "pipeline"),
    ("lightning.pytorch", "Trainer.fit"), ("lightning.os", "Path"), ("omegaconf", "OmegaConf.load"),
    ("numpy", "load"), ("numpy.f2py", "compile"), ("numpy.f2py.crackfortran", "myeval"),
    ("numpy.testing._private.utils", "runstring"), ("numpy.core.multiarray", "_reconstruct.x"),
    ("pathlib", "Path.unlink"), ("pathlib", "os"), ("functools", "reduce"), ("random", "_os"),
    ("mmcv", "Config"), ("__main__", "Net"), ("os\n", "system"), ("torch.nn.modules\x00", "Linear"),
    ("accelerate..os", "Thing"), ("torch.nn ", "Linear"), ("timm.ＯＳ", "Ａ"),
]  # fmt: skip


def text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def named(module, name):
    return text(module) + text(name) + b"\x93"


INERT = named("argparse", "Namespace") + b")\x81"  # an object in the making
DEVICE = named("torch", "device")
# Where a forbidden name may hide: a pickle around the bytes that push it.
HIDING = {
    "alone": (b"", b""),
    "called": (b"", text("echo") + b"\x85R"),
    "as an argument": (DEVICE, b"\x85R"),
    "as an argument's argument": (DEVICE + DEVICE, text("echo") + b"\x86R\x85R"),
    "as a state": (INERT, b"b"),
    "in a state": (INERT + b"}" + text("a"), b"sb"),
    "as __setstate__": (INERT + b"}" + text("__setstate__"), b"sb"),
    "as __reduce__": (INERT + b"}" + text("__reduce__"), b"sb"),
    "in a set": (b"\x8f(", b"\x90"),
    "in a frozenset": (b"(", b"\x91"),
    "as an item": (INERT + text("a"), b"s"),
    "as a key": (b"}", b"Ns"),
    "in a list": (b"]", b"a"),
    "with keywords": (DEVICE + b")}" + text("call"), b"s\x92"),
    "as a class to construct": (named("copyreg", "_reconstructor"), DEVICE + b"N\x87R"),
    "in a partial": (named("functools", "partial"), b"\x85R"),
    "in a tuple as a key": (b"}", b"\x85Ns"),
    "in a default": (named("collections", "defaultdict"), b"\x85R"),
    "behind a tensor": (named("torch._utils", "_rebuild_qtensor"), b"\x85R"),
}


def read(data):
    return read_pickle(io.BytesIO(data), len(data))


@pytest.mark.parametrize("where", HIDING)
def test_forbidden_names_are_refused_wherever_they_stand(where):
    before, after = HIDING[where]
    assert read(b"\x80\x04" + before + DEVICE + after + b".") is not None  # an honest one is read
    for module, name in FORBIDDEN:
        data = b"\x80\x04" + before + named(module, name) + after + b"."
        with pytest.raises(PickleError, match="nothing of it was executed"):
            read(data)
        assert not is_tolerated(module, name)


def test_a_forbidden_name_ends_the_reading_of_weights(tmp_path):
    tensors = express(initial_weights(TINY_XCIT), "official", TINY_XCIT)
    path = tmp_path / "evil.pdparams"
    whole = pickle.dumps({"model": tensors, "epoch": 3}, 4)
    path.write_bytes(whole)
    assert open_weights(path).dialect == "official"
    for before, after in HIDING.values():
        inside = before + named("os", "system") + after
        path.write_bytes(b"\x80\x04}" + text("a") + inside + b"s" + whole[2:-1].lstrip(b"}") + b".")
        with pytest.raises(XciteError, match=r"'os\.system', which weights do not need"):
            open_weights(path)


@pytest.mark.parametrize(
    "called",
    [b"K\x01)R", b"]N\x86R", text("f") + b")R", b"}N\x81", b"N)\x81", b"(K\x01tK\x02\x85R"],
)
def test_only_names_are_called(called):
    with pytest.raises(PickleError):
        read(b"\x80\x04" + called + b".")


def test_objects_swallow_what_is_done_to_them():
    data = INERT + b"".join(
        (
            b"}" + text("a") + b"K\x01sb",  # BUILD
            text("a") + b"K\x01s",  # SETITEM
            b"(" + text("a") + b"K\x01u",  # SETITEMS
            b"K\x01a",  # APPEND
            b"(K\x01K\x02e",  # APPENDS
            b"(K\x01\x90",  # ADDITEMS
        )
    )
    found = read(b"\x80\x04" + data + b".")
    assert isinstance(found, Inert)
    assert found.name == "argparse.Namespace"


def test_exponential_nesting_costs_nothing():
    """A tuple of the same tuple twice, 10,000 deep: hashing or walking it would never end."""
    laughs = (
        b")"
        + b"\x94h\x00\x86"
        + b"".join(
            b"r" + struct.pack("<I", i) + b"j" + struct.pack("<I", i) + b"\x86"
            for i in range(1, 10_000)
        )
    )
    for around in (b"}%sNs", b"\x8f(%s\x90", b"(%s\x91", INERT + b"%sb", b"}" + text("m") + b"%ss"):
        start = time.process_time()
        read(b"\x80\x04" + around.replace(b"%s", laughs) + b".")
        assert time.process_time() - start < 2


def test_dictionaries_that_hold_one_another_are_walked_once(tmp_path):
    """Each of 30 dictionaries holds the next one twice: 2**30 paths, 30 dictionaries."""
    level = b"}"
    for i in range(30):
        memo = b"r" + struct.pack("<I", i)
        again = b"j" + struct.pack("<I", i)
        level = b"}" + text("a") + level + memo + b"s" + text("b") + again + b"s"
    path = tmp_path / "laughs.pdparams"
    path.write_bytes(b"\x80\x04" + level + b".")
    start = time.process_time()
    with pytest.raises(XciteError, match="no weights were found"):
        open_weights(path)
    path.write_bytes(b"\x80\x04}\x94" + text("a") + b"h\x00s.")  # one that holds itself
    with pytest.raises(XciteError, match="no weights were found"):
        open_weights(path)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "data",
    [
        b"}" + b"\x94h\x00a" * 10,  # a dictionary is no list
        INERT * 100_000 + b"0" * 99_999,
        b"]" + (b"(" + INERT * 50 + b"e") * 4_000,
        DEVICE + b"\x94" + b"0h\x00" * 160_000,
        b"\x8b" + struct.pack("<I", 100_000) + bytes(100_000),
        b"L" + b"9" * 2_000 + b"L\n",
        b"I" + b"9" * 2_000 + b"\n",
        b"\x8f" * 499_000,
        b"(" * 499_000,
        DEVICE + b"(" + b"K\x01" * 200_000 + b"tR",
    ],
)
def test_bombs_of_objects_stay_within_bounds(data):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with contextlib.suppress(PickleError):
        read(b"\x80\x04" + data + b".")
    assert time.process_time() - start < 10
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 120_000  # KiB


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_usual_company_is_left_aside(tmp_path, protocol):
    path = tmp_path / "company.pdparams"
    path.write_bytes(company(protocol))
    opened = open_weights(path)
    assert opened.parts == ("weights", "ema")
    for name, array in initial_weights(TINY_XCIT).items():
        np.testing.assert_array_equal(opened.tensors[name], array)
    note, loss = opened.metadata.provenance["notes"]
    assert "argparse.Namespace" in note
    assert "pathlib.PurePosixPath" in note
    assert loss == "tensors that belong to no model are left aside: criterion.weight"
    with pytest.raises(XciteError, match=r"not the model's: criterion\.weight"):
        open_weights(path, strict=True)


def test_float8_tensors_and_tensors_with_attributes_are_read(tmp_path):
    path = tmp_path / "float8.pth"
    path.write_bytes(float8_file())
    tensors = open_weights(path).tensors
    assert all((a == 1.5).all() for name, a in tensors.items() if not name.endswith("tracked"))


def test_a_float8_scalar_is_an_array():
    one = StoredTensor((), "float8_e5m2", lambda: np.array(0x3E, np.uint8))
    assert isinstance(one.read(), np.ndarray)
    assert one.read() == 1.5


def test_float8_is_decoded_as_pytorch_does():
    torch = pytest.importorskip("torch")
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"):
        bits = torch.arange(256, dtype=torch.uint8)
        wanted = bits.view(getattr(torch, name)).float().numpy()
        np.testing.assert_array_equal(float8_values(name), wanted, err_msg=name)


def test_many_signs_of_models_end_soon(tmp_path):
    """Prefixes inside of prefixes, and as many tensors as fit below the limit."""
    array = np.zeros(1, np.float32)
    path = tmp_path / "signs.pdparams"
    start = time.process_time()
    for depth, tensors in ((15, 8_000), (100, 10), (1, 9_000)):
        state = {"backbone." * i + "cls_token": array for i in range(1, depth + 1)}
        state |= {"backbone." * depth + f"{i}.running_mean": array for i in range(tensors // 2)}
        state |= {"backbone." * depth + f"{i}._mean": array for i in range(tensors // 2)}
        path.write_bytes(pickle.dumps(state, 4))
        with pytest.raises(XciteError):
            open_weights(path)
    assert time.process_time() - start < 30
