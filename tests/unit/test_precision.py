"""What programs run in, on processors that this one is told to be."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from xcite import processor
from xcite.processor import Processor, allowed, this_processor
from xcite.runtime.precision import as_run

NEW = frozenset({"avx2", "avx512bw", "avx512_vnni", "avx512_bf16"})
SERVER = NEW - {"avx512_bf16"}  # Cascade Lake
OLD = frozenset({"avx2"})
UNTOLD = Processor("unknown", "", "", frozenset(), known=False)
IMITATED = "this processor only imitates bfloat16: the bundle runs in it, but no faster"
NO_BF16 = "this processor has no bfloat16 instructions: {} runs in float32"
NO_VNNI = "this processor has no instructions for int8 (VNNI): it may be no faster so"


@pytest.mark.parametrize(
    ("asked", "flags", "floats", "whole", "notes"),
    [
        ("f32", OLD, "f32", "f32", []),
        ("bf16", NEW, "bf16", "bf16", []),
        ("bf16", UNTOLD, "bf16", "bf16", []),
        ("bf16", SERVER, "bf16", "bf16", [IMITATED]),
        ("bf16", OLD, "f32", "f32", [NO_BF16.format("the bundle")]),
        ("int8", NEW, "bf16", "int8", []),
        ("int8", SERVER, "bf16", "int8", [IMITATED]),
        ("int8", OLD, "f32", "int8", [NO_VNNI, NO_BF16.format("what is not int8")]),
        ("int8", OLD | {"avx_vnni"}, "f32", "int8", [NO_BF16.format("what is not int8")]),
        ("f16", NEW, "f32", "f32", ["its float16 numbers are computed in float32 on a CPU"]),
    ],
)
def test_what_a_processor_lacks_is_said(asked, flags, floats, whole, notes):
    assert as_run(asked, having(flags)) == (floats, whole, notes)


def having(flags):
    return Processor("", "", "", flags) if isinstance(flags, frozenset) else flags


@pytest.mark.parametrize(
    ("level", "like"),
    [
        ("AVX2", OLD),
        ("avx2", OLD),
        ("SSE41", OLD),
        ("AVX512_CORE_VNNI", SERVER),
        ("AVX512_CORE_BF16", NEW),
        ("AVX10_1_512_AMX", NEW),
        ("DEFAULT", NEW),
        ("nonsense", NEW),
    ],
)
def test_what_onednn_may_not_use_is_not_there(monkeypatch, level, like):
    expected = [as_run(asked, having(like)) for asked in ("bf16", "int8")]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", level)
    held = having(allowed([*NEW]))
    assert [as_run(asked, held) for asked in ("bf16", "int8")] == expected


def test_what_linux_tells_of_the_processor(tmp_path, monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")

    def read(text):
        (tmp_path / "cpuinfo").write_text(text)
        return processor.this_processor.__wrapped__()

    core = "processor : 0\nvendor_id : GenuineIntel\ncpu family : 6\nmodel : 85\n"
    found = read(f"{core}model name\t: flags: 7\nflags\t: fpu avx2\nflags : x\n\nflags : sse\n")
    told = (found.name, found.vendor, found.model, found.instructions, found.known)
    assert told == ("flags: 7", "GenuineIntel", "6.85", {"avx2"}, True)
    assert not read("Features : fp asimd\n").known
    (tmp_path / "cpuinfo").unlink()
    assert not processor.this_processor.__wrapped__().known


def test_a_bundle_in_bfloat16_answers_where_onednn_is_held_back(tmp_path):
    """OpenVINO itself would fail there: it looks at the processor and not at the variable."""
    pytest.importorskip("openvino")
    if not this_processor().known:
        pytest.skip("this system does not tell the processor's instructions")
    from serving import make_bundle

    folder = make_bundle(tmp_path / "b")
    code = """
import json, sys
import numpy as np
from xcite.runtime.predictor import Predictor
images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
for precision in ("f32", "bf16"):
    one = Predictor(sys.argv[1], runtime="openvino", precision=precision, threads=1)
    print(json.dumps([one.precision, one.notes, one.logits(images).tolist()]))
"""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", code, folder], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    exact, held = map(json.loads, done.stdout.splitlines())
    assert (held[0], held[1][0]) == ("f32", NO_BF16.format("the bundle"))
    np.testing.assert_array_equal(exact[2], held[2])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_says_at_the_start_what_it_runs_in(tmp_path, workers):
    for package in ("uvicorn", "fastapi", "onnxruntime"):
        pytest.importorskip(package)
    from serving import make_bundle

    from xcite.runtime.bundle import DESCRIPTION, read_info, seal_folder

    folder = make_bundle(tmp_path / "b")
    info = read_info(folder).model_copy(update={"precision": "f16"})
    (folder / DESCRIPTION).unlink()
    seal_folder(folder, info)
    command = ("serve", folder / "model.onnx", "--port", "0", "--workers", str(workers))
    code = "import sys; from xcite.cli import main; main(sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, command)], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        said = [server.stdout.readline() for _ in range(2)]
        server.terminate()
    assert said[0].startswith("serving ")
    assert said[1] == "note: its float16 numbers are computed in float32 on a CPU\n"
