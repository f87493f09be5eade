"""Folders of `torch.distributed.checkpoint`: PyTorch's own read here, ours read by PyTorch."""

import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from weight_mutations import TINY_XCIT, damaged, read_or_refused

from xcite import cli
from xcite.canonical import initial_weights
from xcite.errors import XciteError
from xcite.variants import XCiTArchitecture
from xcite.weights import Metadata, distributed_metadata, open_weights, save_weights
from xcite.weights.convert import convert
from xcite.weights.dialects import express
from xcite.weights.distributed_metadata import Piece, _cover
from xcite.weights.distributed_writer import write_distributed
from xcite.weights.inspection import inspect

WORKER = Path(__file__).with_name("sharded_saving.py")
OWN = XCiTArchitecture(8, 28, 1, 2, eta=0.5, num_classes=3, tokens_norm=False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "own.safetensors"
    random = np.random.default_rng(0)
    tensors = {
        name: random.standard_normal(array.shape).astype(np.float32)
        if array.dtype == np.float32
        else array + 7
        for name, array in initial_weights(OWN).items()
    }
    save_weights(path, tensors, Metadata(architecture=OWN))
    return path


@pytest.fixture(scope="module")
def tensors(weights):
    return open_weights(weights).tensors


@pytest.fixture
def saved(tmp_path, weights):
    """A folder as this package writes it, which needs no PyTorch."""
    convert(weights, tmp_path / "saved", to="official-dcp")
    return tmp_path / "saved"


def opened(folder):
    """Fields that no tensor shows (eta, tokens_norm) are given."""
    return open_weights(folder, architecture=OWN).tensors


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].tobytes() == array.tobytes(), name


def xcite(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stopped.value.code, captured.out, captured.err


# --- what this package writes -----------------------------------------------------------------


@pytest.mark.parametrize("to", ["official-dcp", "timm-dcp"])
def test_there_and_back(tmp_path, weights, tensors, to):
    done = convert(weights, tmp_path / "out", to=to)
    assert {path.name for path in done.path.iterdir()} == {".metadata", "__0_0.distcp"}
    assert_same(opened(done.path), tensors)
    again = convert(done.path, tmp_path / "again", to=to, architecture=OWN)
    for path in done.path.iterdir():
        assert path.read_bytes() == (again.path / path.name).read_bytes()


def test_an_earlier_folder_is_replaced_and_another_refused(tmp_path, weights, tensors):
    folder = tmp_path / "out"
    convert(weights, folder, to="timm-dcp")
    (folder / "__7_0.distcp").write_bytes(b"of a run with more processes")
    (folder / "notes.txt").write_text("mine")
    convert(weights, folder, to="official-dcp")
    assert {p.name for p in folder.iterdir()} == {".metadata", "__0_0.distcp", "notes.txt"}
    other = tmp_path / "pictures"
    other.mkdir()
    (other / "a.png").touch()
    with pytest.raises(XciteError, match="exists and is not a distributed checkpoint"):
        convert(weights, other, to="official-dcp")
    assert [path.name for path in other.iterdir()] == ["a.png"]
    with pytest.raises(XciteError, match="is the file to convert"):
        convert(folder, folder, to="timm-dcp")


def test_a_folder_appears_whole_or_not_at_all(tmp_path, tensors):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # a write beyond it fails
    try:
        with pytest.raises(XciteError, match="cannot write"):
            write_distributed(tmp_path / "out", tensors, wrap=None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.torch
@pytest.mark.parametrize(("to", "level"), [("official-dcp", "model"), ("timm-dcp", None)])
def test_pytorch_reads_what_is_written(tmp_path, weights, to, level):
    torch = pytest.importorskip("torch")
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    convert(weights, tmp_path / "folder", to=to)
    convert(weights, tmp_path / "file.pth", to=to.removesuffix("-dcp"))
    wanted = torch.load(tmp_path / "file.pth")
    state = wanted[level] if level else wanted
    empty = {name: torch.full_like(tensor, 3) for name, tensor in state.items()}
    with pytest.warns(UserWarning, match="single process"):
        dcp.load({level: empty} if level else empty, checkpoint_id=tmp_path / "folder")
    assert_same(
        {name: tensor.numpy() for name, tensor in empty.items()},
        {name: tensor.numpy() for name, tensor in state.items()},
    )
    dcp_to_torch_save(tmp_path / "folder", tmp_path / "joined.pth")
    joined = torch.load(tmp_path / "joined.pth")
    assert (joined[level] if level else joined).keys() == state.keys()


# --- what PyTorch writes ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, weights):
    """What two processes save of one model (`sharded_saving`)."""
    pytest.importorskip("torch")
    out = tmp_path_factory.mktemp("sharded")
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    command = [sys.executable, WORKER, weights, out]
    processes = [
        subprocess.Popen(
            [*command, str(rank), "2"], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    return out


@pytest.mark.torch
@pytest.mark.parametrize("name", ["fsdp2", "accelerate"])
def test_models_cut_by_fsdp(sharded, tensors, name):
    assert_same(opened(sharded / name), tensors)


@pytest.mark.torch
def test_columns_in_half_precision(sharded, tensors):
    import torch

    wanted = {
        name: torch.from_numpy(array).bfloat16().float().numpy()
        if array.dtype == np.float32
        else array
        for name, array in tensors.items()
    }
    assert_same(opened(sharded / "columns"), wanted)


@pytest.mark.torch
def test_the_command_reads_what_two_processes_saved(sharded, tmp_path, capsys):
    code, out, _ = xcite(capsys, "inspect", sharded / "fsdp2")
    assert code == 0
    assert "fsdp2: PyTorch, distributed" in out
    assert "optim" not in out  # the moments lie apart: they are no tensors beside the model
    target = tmp_path / "joined.safetensors"
    # Of accelerate's folders the one that holds the model is found and named.
    (sharded / "accelerate" / "scheduler.bin").touch()
    optimizer = sharded / "accelerate" / "optimizer_0"
    shutil.copytree(sharded / "fsdp2", optimizer, dirs_exist_ok=True)
    code, out, _ = xcite(capsys, "convert", sharded / "accelerate", target, "--to", "xcite")
    assert code == 0
    assert "note: read from the distributed checkpoint pytorch_model_fsdp_0" in out
    files = sharded / "accelerate" / "pytorch_model_fsdp_0"
    for name in (".metadata", "__1_0.distcp"):
        assert_same(opened(files / name), open_weights(target).tensors)


def save(state, folder, **writing):
    import torch.distributed.checkpoint as dcp

    writer = dcp.FileSystemWriter(folder, **writing)
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(state, storage_writer=writer, no_dist=True)


def as_torch(tensors, dtype=None):
    import torch

    state = {name: torch.from_numpy(array) for name, array in tensors.items()}
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}


@pytest.mark.torch
@pytest.mark.parametrize("form", ["plain", "threads", "a file each", "safetensors", "behind"])
def test_ways_of_writing(tmp_path, tensors, form):
    pytest.importorskip("torch")
    from torch.distributed.checkpoint.filesystem import SerializationFormat

    options = {
        "plain": {},
        "threads": {"thread_count": 3},
        "a file each": {"single_file_per_rank": False},
        "safetensors": {"serialization_format": SerializationFormat.SAFETENSORS},
        "behind": {"serialization_format": SerializationFormat.SAFETENSORS},
    }[form]
    state = as_torch(tensors)
    # Objects stand before the block of safetensors in its file.
    save({**state, "epoch": 3} if form == "behind" else state, tmp_path / "out", **options)
    assert_same(opened(tmp_path / "out"), tensors)


@pytest.mark.torch
def test_parts_of_a_nested_checkpoint(tmp_path, tensors):
    torch = pytest.importorskip("torch")
    model = as_torch(tensors, torch.float16)
    ema = {f"module.{name}": tensor + 1 for name, tensor in as_torch(tensors).items()}
    moments = {name: {"exp_avg": tensor, "step": torch.tensor(1.0)} for name, tensor in ema.items()}
    state = {
        "app": {"model": model, "ema": ema, "optim": {"state": moments, "groups": [{"lr": 0.1}]}},
        "history": [torch.zeros(2), "a text"],
    }
    save(state, tmp_path / "out")
    report = inspect(tmp_path / "out")
    assert [(part.part, part.aside) for part in report.parts] == [("weights", []), ("ema", [])]
    halves = {n: a.astype(np.float16) if a.dtype == np.float32 else a for n, a in tensors.items()}
    found = opened(tmp_path / "out")
    assert_same(found, {name: halves[name].astype(tensors[name].dtype) for name in tensors})
    averaged = open_weights(tmp_path / "out", architecture=OWN, part="ema").tensors
    assert_same(averaged, {name: array + 1 for name, array in tensors.items()})


@pytest.mark.torch
def test_flattened_names_without_their_places(tmp_path, tensors):
    pytest.importorskip("torch")
    state = {f"app.model.{name}": tensor for name, tensor in as_torch(tensors).items()}
    save(state, tmp_path / "out")
    changed(tmp_path / "out", lambda metadata: setattr(metadata, "planner_data", None))
    assert_same(opened(tmp_path / "out"), tensors)


# --- damaged and hostile folders --------------------------------------------------------------


def changed(folder, change):
    """Let ``change`` work on PyTorch's own metadata, or give what is pickled in their place."""
    file = folder / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    file.write_bytes(pickle.dumps(change(metadata) or metadata))


def refused(folder, said):
    with pytest.raises(XciteError, match=said) as error:
        opened(folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


class Runs:
    """Pickled, it is a call of os.system."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("where", ["instead", "beside"])
def test_nothing_is_executed(tmp_path, saved, where):
    trace = tmp_path / "trace"
    program = pickle.dumps(Runs(f"touch {trace}"))
    file = saved / ".metadata"
    if where == "beside":  # an honest file up to its last instruction, then a call
        # POP_MARK would leave the metadata: the call stands where the version did.
        honest = file.read_bytes()
        version = b"X\x05\x00\x00\x001.0.0ub."
        assert honest.endswith(version)
        program = honest.removesuffix(version) + program[2:].removesuffix(b".") + b"ub."
        assert b"system" in program
    file.write_bytes(program)
    refused(saved, "posix.system.*nothing of it was executed")
    assert not trace.exists()
    pickle.loads(program)  # it is a program that works
    assert trace.exists()


def test_pieces_are_read_as_data_too(tmp_path, saved):
    trace = tmp_path / "trace"
    pieces = saved / "__0_0.distcp"
    harmless = b"torch._utils\n_rebuild_tensor_v2"
    hostile = b"posix\nsystem"
    raw = pieces.read_bytes()
    assert raw.count(harmless) > 10
    pieces.write_bytes(raw.replace(harmless, hostile.ljust(len(harmless), b" ")))
    refused(saved, "a checksum is wrong")
    assert not trace.exists()


@pytest.mark.parametrize("name", [b"../../pw.pth", b"/etc/passwd1", b"..", b"a/b.distcp12"])
def test_no_piece_lies_outside(tmp_path, saved, name):
    file = saved / ".metadata"
    text = b"X\x0c\x00\x00\x00__0_0.distcp"
    assert file.read_bytes().count(text) > 10
    shutil.copy(saved / "__0_0.distcp", tmp_path / "pw.pth")
    file.write_bytes(file.read_bytes().replace(text, b"X" + len(name).to_bytes(4, "little") + name))
    refused(saved, "which is no plain name of a file")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "__0_0.distcp").unlink(), "__0_0.distcp is not in the folder; copy all"),
        (lambda f: os.truncate(f / "__0_0.distcp", 5000), "is too short for what .metadata says"),
        (lambda f: (f / "__0_0.distcp").write_bytes(b""), "is too short for what .metadata says"),
        (lambda f: os.truncate(f / ".metadata", 5000), "end too early|does not end"),
        (lambda f: os.truncate(f / ".metadata", 0), "end too early"),
        (lambda f: os.truncate(f / ".metadata", 2**27), "bytes; at most 67108864 are read"),
        (lambda f: (f / ".metadata").write_bytes(pickle.dumps({})), "not as torch.distributed"),
        (lambda f: (f / ".metadata").unlink(), "but no .metadata; it was not copied"),
        (lambda f: (f / ".metadata").rename(f / "__0.metadata"), "use_collectives=False"),
        (
            lambda f: (f / "__0_0.distcp").write_bytes(bytes((f / "__0_0.distcp").stat().st_size)),
            "neither an archive of torch.save nor safetensors",
        ),
    ],
)
def test_damaged_folders(saved, change, said):
    change(saved)
    refused(saved, said)


def test_a_fifo_does_not_block(saved):
    (saved / "__0_0.distcp").unlink()
    os.mkfifo(saved / "__0_0.distcp")
    refused(saved, "is not in the folder")


def test_one_folder_of_several_must_be_named(tmp_path, saved):
    shutil.copytree(saved, tmp_path / "later")
    with pytest.raises(XciteError, match="several distributed checkpoints: later, saved; name one"):
        open_weights(tmp_path)


def _change(name, **fields):
    """Changes of the metadata of one tensor."""

    def change(metadata):
        entry = metadata.state_dict_metadata[name]
        for field, value in fields.items():
            setattr(entry, field, value(entry))

    return change


def _pieces(*boxes):
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

    return [ChunkStorageMetadata(offsets, sizes) for offsets, sizes in boxes]


def _stored(**fields):
    """Changes of every place of a piece."""

    def change(metadata):
        for info in metadata.storage_data.values():
            for field, value in fields.items():
                setattr(info, field, value)

    return change


def _without_storage(metadata):
    metadata.storage_data = {}


def _claiming_much(metadata):
    """Each tensor lies in the same bytes, which are enough for any one of them alone."""
    largest = max(metadata.storage_data.values(), key=lambda info: info.length)
    for index in metadata.storage_data:
        metadata.storage_data[index] = largest


def _many_names(metadata):
    """One tensor of many empty pieces under many names, which costs no space in a pickle."""
    entry = metadata.state_dict_metadata["model.head.bias"]
    entry.size, entry.chunks = (0,), _pieces(((0,), (0,))) * 1000
    for number in range(1000):
        metadata.state_dict_metadata[f"a{number}"] = entry


def _places(value):
    def change(metadata):
        metadata.planner_data = dict.fromkeys(metadata.planner_data, value)

    return change


HEAD = "model.head.weight"  # 3 rows of 28
MLP = "model.blocks.0.mlp.fc1.weight"  # 112 rows of 28
CHANGES = {
    "gap": (
        lambda: _change(HEAD, chunks=lambda e: _pieces(((0, 0), (2, 28)))),
        "the pieces of model.head.weight leave gaps or overlap",
    ),
    "overlap": (
        lambda: _change(HEAD, chunks=lambda e: _pieces(((0, 0), (3, 28)), ((0, 0), (3, 28)))),
        "leave gaps or overlap",
    ),
    "outside": (
        lambda: _change(HEAD, chunks=lambda e: _pieces(((0, 0), (4, 28)))),
        "leave gaps or overlap",
    ),
    "none": (lambda: _change(HEAD, chunks=lambda e: []), "leave gaps or overlap"),
    "nowhere": (
        lambda: _change(HEAD, chunks=lambda e: _pieces(((0, 1), (3, 27)), ((0, 0), (3, 1)))),
        r"the piece of model.head.weight at \(0, 1\) is in no file",
    ),
    "dimensions": (
        lambda: _change(HEAD, chunks=lambda e: _pieces(((0,), (84,)))),
        "has other dimensions than the tensor",
    ),
    "negative": (
        lambda: _change(HEAD, chunks=lambda e: _pieces(((0, -1), (3, 29)))),
        "something other than sizes",
    ),
    "huge": (
        lambda: _change(
            HEAD,
            size=lambda e: (2**40, 2**40),
            chunks=lambda e: _pieces(((0, 0), (2**40, 2**40))),
        ),
        "is too short for what .metadata says",
    ),
    "other shape": (
        lambda: _change(
            MLP, size=lambda e: (28, 112), chunks=lambda e: _pieces(((0, 0), (28, 112)))
        ),
        "mlp.fc1.weight",
    ),
    "other order": (
        lambda: _change(
            "model.norm.weight", size=lambda e: (1, 28), chunks=lambda e: _pieces(((0, 0), (1, 28)))
        ),
        r"at \(0, 0\) is in no file",
    ),
    "no storage": (lambda: _without_storage, "is in no file"),
    "before the file": (lambda: _stored(offset=-1), "is at no place in a file"),
    "no number": (lambda: _stored(offset="0"), "is at no place in a file"),
    "behind the file": (lambda: _stored(offset=2**40), "is too short"),
    "cut archive": (lambda: _stored(length=700), "is too short|cut short"),
    "shared": (lambda: _claiming_much, "is not of the shape and type|claim"),
    "packed": (
        lambda: _stored(transform_descriptors=["zstd"]),
        "its pieces are packed .'zstd'., which is not read; load it with PyTorch",
    ),
    "many": (lambda: _many_names, "has more than 120000 pieces"),
    "long place": (lambda: _places(("a",) * 65), "is no list of keys"),
    "odd place": (lambda: _places((("a",),)), "is no list of keys"),
    "same place": (lambda: _places(("model", "x")), "two things are saved under one name"),
    "type": (
        lambda: (
            lambda metadata: setattr(
                metadata.state_dict_metadata[HEAD].properties, "dtype", __import__("torch").int32
            )
        ),
        "is not of the shape and type that .metadata says|is of type int32",
    ),
    "quantised": (
        lambda: (
            lambda metadata: setattr(
                metadata.state_dict_metadata[HEAD].properties, "dtype", __import__("torch").qint8
            )
        ),
        "a qint8 tensor",
    ),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", CHANGES)
def test_false_metadata(saved, name):
    pytest.importorskip("torch")
    make, said = CHANGES[name]
    changed(saved, make())
    refused(saved, said)


@pytest.mark.torch
def test_safetensors_blocks_are_checked(tmp_path, tensors):
    pytest.importorskip("torch")
    from torch.distributed.checkpoint.filesystem import SerializationFormat

    save(
        as_torch(tensors),
        tmp_path / "out",
        serialization_format=SerializationFormat.SAFETENSORS,
    )
    pieces = tmp_path / "out" / "__0_0.distcp"
    whole = pieces.read_bytes()
    for old, new, said in (
        (b'"saved_offsets', b'"sawed_offsets', "safetensors header does not describe"),
        (b'\\"saved_offsets\\": [0, 0]', b'\\"saved_offsets\\": [0, 1]', "does not describe"),
        (b'"dtype":"F32","shape":[3,28]', b'"dtype":"F64","shape":[3,28]', "of the shape and type"),
        (b'"shape":[3,28]', b'"shape":[28,3]', "of the shape and type"),
        (b'{"', b'["', "neither an archive"),
    ):
        assert old in whole
        pieces.write_bytes(whole.replace(old, new))
        refused(tmp_path / "out", said)
    pieces.write_bytes(whole[:-4])
    refused(tmp_path / "out", "the data end too early|is too short")


def pieces(*boxes):
    return [Piece(offsets, sizes, "", 0, 0) for offsets, sizes in boxes]


@pytest.mark.parametrize(
    ("shape", "boxes", "exact"),
    [
        ((), [((), ())], True),
        ((), [], False),
        ((), [((), ())] * 2, False),
        ((0, 3), [], True),
        ((4,), [((0,), (1,)), ((1,), (3,))], True),
        ((4,), [((1,), (3,)), ((0,), (1,))], True),
        ((4,), [((0,), (2,)), ((3,), (1,))], False),
        # a pinwheel: no straight cut goes through it
        (
            (3, 3),
            [((0, 0), (1, 2)), ((0, 2), (2, 1)), ((2, 1), (1, 2)), ((1, 0), (2, 1)),
             ((1, 1), (1, 1))],
            True,
        ),
        # as many numbers as the tensor has, one place twice and one never
        ((2, 2), [((0, 0), (1, 2)), ((1, 0), (1, 1)), ((0, 1), (1, 1))], False),
        ((2, 2), [((0, 0), (2, 1)), ((0, 2), (2, 1))], False),
    ],
)  # fmt: skip
def test_pieces_that_cover_a_tensor(shape, boxes, exact):
    assert _cover(shape, pieces(*boxes)) is exact


def test_random_cuts_are_judged_as_by_counting():
    random = np.random.default_rng(3)
    exact = 0
    for _ in range(300):
        shape = tuple(int(n) for n in random.integers(1, 5, 3))
        boxes = [((0, 0, 0), shape)]
        for _ in range(random.integers(0, 6)):  # cut one box in two
            offsets, sizes = boxes.pop(int(random.integers(len(boxes))))
            axis = int(random.integers(3))
            first = int(random.integers(0, sizes[axis] + 1))
            for start, size in ((0, first), (first, sizes[axis] - first)):
                o, s = list(offsets), list(sizes)
                o[axis] += start
                s[axis] = size
                boxes.append((tuple(o), tuple(s)))
        boxes = [box for box in boxes if 0 not in box[1]]
        if random.random() < 0.5 and boxes:  # move one by a number
            number = int(random.integers(len(boxes)))
            offsets, sizes = boxes[number]
            boxes[number] = ((offsets[0] + 1, *offsets[1:]), sizes)
        counted = np.zeros([n + 6 for n in shape], int)
        for offsets, sizes in boxes:
            counted[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))] += 1
        inside = counted[tuple(slice(0, n) for n in shape)]
        wanted = bool((inside == 1).all() and counted.sum() == inside.sum())
        assert _cover(shape, pieces(*boxes)) is wanted
        exact += wanted
    assert 100 < exact < 250


def test_any_wound_ends_in_one_line(tmp_path):
    """XCITE_FUZZ_CASES chooses more of them."""
    tensors = express(initial_weights(TINY_XCIT), "official", TINY_XCIT)
    write_distributed(tmp_path / "whole", tensors, wrap="model")
    metadata, data = (
        (tmp_path / "whole" / name).read_bytes() for name in (".metadata", "__0_0.distcp")
    )
    case = tmp_path / "case"
    case.mkdir()
    counts = {"read": 0, "refused": 0}
    for seed in range(int(os.environ.get("XCITE_FUZZ_CASES", "400"))):
        random = np.random.default_rng(seed)
        inside = random.random() < 0.25
        pieces = bytearray(data)
        for at in random.integers(0, len(pieces), random.integers(3) if inside else 0):
            pieces[at] = random.integers(256)
        (case / "__0_0.distcp").write_bytes(pieces)
        wounded = metadata if inside else damaged(metadata, random, [metadata, data])
        (case / ".metadata").write_bytes(wounded)
        counts[read_or_refused(case)] += 1
    assert counts["refused"] > counts["read"] > 10, counts


def test_work_is_bounded(saved, monkeypatch):
    """A pickle that is all pieces ends at the limit of instructions."""
    monkeypatch.setattr(distributed_metadata, "MAX_INSTRUCTIONS", 1000)
    refused(saved, "more than 1000 instructions")
