"""Programs of every framework as teachers: their answers, sizes and classes, and refusals."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xcite import recipe as recipes
from xcite.data.batch import Batch
from xcite.engines import create_engine, installed
from xcite.engines.pixels import model_input
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.recipe import Recipe
from xcite.runtime.bundle import BundleInfo, describe, seal_folder
from xcite.runtime.programs import is_program, open_program
from xcite.training.teachers.facts import facts
from xcite.training.teachers.live import live_teacher, resize
from xcite.variants import find

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
CLASSES = ["cat", "dog", "fox"]
TINY = """
model: {name: xcit_nano_12_p8, patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}
preprocessing: {size: 16, mean: [0.4], std: [0.2]}
optim: {batch: 8, epochs: 2, warmup_epochs: 0, lr_per: null}
distill: {loss: soft}
"""
MATRIX = np.random.default_rng(2).standard_normal((1, 3)).astype(np.float32)


def tiny(path: object, *settings: str) -> Recipe:
    own = [f"run.engine={installed()[0]}", f"distill.teacher={path}"]
    return recipes.parse(TINY, "tiny", [*own, *settings])


def batch_of(count: int = 8, size: int = 16) -> Batch:
    pictures = np.random.default_rng(0).integers(0, 256, (count, size, size, 1), np.uint8)
    return Batch(
        pictures=pictures,
        labels=np.zeros(count, np.int64),
        views=np.stack([np.arange(count), np.zeros(count, np.int64)], axis=1),
        targets=np.full((count, 3), 1 / 3, np.float32),
    )


def expected(images: np.ndarray) -> np.ndarray:
    """What every teacher here answers: float32 (B, 3) of images (B, 1, H, W)."""
    logits: np.ndarray = images.mean((2, 3)) @ MATRIX
    return logits


# --- PyTorch ----------------------------------------------------------------------------------


def torch_model(answer: str = "tensor") -> Any:
    torch = pytest.importorskip("torch")

    class Means(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(1, 3, bias=False)
            self.head.weight.data = torch.from_numpy(MATRIX.T.copy())

        def forward(self, images: Any) -> Any:
            logits = self.head(images.mean((2, 3)))
            if answer == "tuple":  # a number, whole numbers and (B, K, 1) are no logits
                return images.sum(), logits.argmax(1, keepdim=True), logits[:, :, None], logits
            if answer == "dict":
                return {"features": images.mean((2, 3)), "logits": logits}
            return logits

    return Means().eval()


# `torch.jit.script` reads the source of a class from its file.
SCRIPTED = """
import torch

class Means(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(1, 3, bias=False)

    def forward(self, images: torch.Tensor):
        return {"logits": self.head(images.mean((2, 3))), "sum": images.sum()}
"""


def scripted(folder: Path, name: str = "teacher.pt") -> Path:
    torch = pytest.importorskip("torch")
    import importlib.util

    (folder / "means.py").write_text(SCRIPTED)
    spec = importlib.util.spec_from_file_location("means", folder / "means.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Means()
    model.head.weight.data = torch.from_numpy(MATRIX.T.copy())
    torch.jit.script(model).save(folder / name)
    return folder / name


def traced(folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    path = folder / "teacher.pth"
    torch.jit.trace(torch_model("tuple"), torch.zeros(4, 1, 16, 16)).save(path)
    return path


def exported(
    folder: Path, answer: str = "tensor", batch: int | None = None, size: int = 16
) -> Path:
    torch = pytest.importorskip("torch")
    path = folder / "teacher.pt2"
    dynamic = None if batch else ({0: torch.export.Dim("batch", min=2)},)
    images = torch.zeros(batch or 4, 1, size, size)
    torch.export.save(
        torch.export.export(torch_model(answer), (images,), dynamic_shapes=dynamic), path
    )
    return path


# --- Paddle -----------------------------------------------------------------------------------


def paddle_program(
    folder: Path, shape: tuple[int | None, ...] = (None, 1, None, None), *, old: bool = False
) -> Path:
    paddle = pytest.importorskip("paddle")

    class Means(paddle.nn.Layer):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.head = paddle.nn.Linear(1, 3, bias_attr=False)
            self.head.weight.set_value(MATRIX)

        def forward(self, images: Any) -> Any:
            logits = self.head(images.mean((2, 3)))
            return paddle.nn.functional.softmax(logits), logits

    model = Means()
    model.eval()
    spec = paddle.static.InputSpec(list(shape), "float32", "images")
    with paddle.pir_utils.OldIrGuard() if old else paddle.no_grad():
        paddle.jit.save(model, str(folder / "teacher"), input_spec=[spec])
    return folder / ("teacher.pdmodel" if old else "teacher.json")


# --- ONNX -------------------------------------------------------------------------------------


def onnx_program(
    folder: Path,
    shape: tuple[int | str, ...] = ("batch", 1, "h", "w"),
    answer: str = "Identity",
) -> Path:
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("ReduceMean", ["images", "axes"], ["means"], keepdims=0),
            onnx.helper.make_node("MatMul", ["means", "matrix"], ["products"]),
            onnx.helper.make_node(answer, ["products"], ["answer"]),
        ],
        "teacher",
        [onnx.helper.make_tensor_value_info("images", 1, list(shape))],
        [onnx.helper.make_tensor_value_info("answer", 1, [shape[0], 3])],
        [
            onnx.numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
            onnx.numpy_helper.from_array(MATRIX, "matrix"),
        ],
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    path = folder / "teacher.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


PROGRAMS: dict[str, Callable[[Path], Path]] = {
    "torch.jit.script": scripted,
    "torch.jit.script, .torchscript": lambda folder: scripted(folder, "teacher.torchscript"),
    "torch.jit.trace, a tuple": traced,
    "torch.export": exported,
    "torch.export, a dict": lambda folder: exported(folder, "dict"),
    "torch.export, a tuple": lambda folder: exported(folder, "tuple"),
    "torch.export, a batch of 3": lambda folder: exported(folder, batch=3),
    "paddle.jit.save": paddle_program,
    "paddle.jit.save, a batch of 3": lambda folder: paddle_program(folder, (3, 1, 16, 16)),
    "paddle.jit.save, .pdmodel": lambda folder: paddle_program(folder, old=True),
    "ONNX": onnx_program,
    "ONNX, a batch of 3": lambda folder: onnx_program(folder, (3, 1, 16, 16)),
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_program_answers_as_the_module_it_was_made_of(kind: str, tmp_path: Path) -> None:
    path = PROGRAMS[kind](tmp_path)
    for engine in installed():
        recipe = tiny(path, f"run.engine={engine}")
        assert facts(recipe, CLASSES).classes == 3
        teacher = live_teacher(recipe, CLASSES)
        seen = model_input(batch_of(), recipe.preprocessing)
        # float32 means of 256 pixels, summed in another order
        np.testing.assert_allclose(teacher.answers(batch_of()), expected(seen), atol=1e-5)
        assert any("has no bundle.json beside it" in note for note in teacher.notes)
        assert teacher.identity()["name"] == path.name


def test_of_probabilities_the_logarithms_are_the_logits(tmp_path: Path) -> None:
    recipe = tiny(onnx_program(tmp_path, answer="Softmax"))
    teacher = live_teacher(recipe, CLASSES)
    assert any("gives probabilities alone" in note for note in teacher.notes)
    logits = expected(model_input(batch_of(), recipe.preprocessing))
    logarithms = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(teacher.answers(batch_of()), logarithms, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: exported(folder, size=24),
        lambda folder: paddle_program(folder, (None, 1, 24, 24)),
        lambda folder: onnx_program(folder, ("batch", 1, 24, 24)),
    ],
    ids=["torch.export", "paddle", "onnx"],
)
def test_a_programs_only_size_is_its_size(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    recipe = tiny(path)
    teacher = live_teacher(recipe, CLASSES)
    seen = resize(model_input(batch_of(), recipe.preprocessing), 24)
    np.testing.assert_allclose(teacher.answers(batch_of()), expected(seen), atol=1e-5)
    assert teacher.identity()["size"] == 24
    with pytest.raises(XciteError, match=rf"^teacher {path} takes pictures of 24 x 24 .* is 32"):
        facts(tiny(path, "distill.teacher_size=32"), CLASSES)


def test_a_recipe_gives_mean_and_std_and_they_count(tmp_path: Path) -> None:
    path = onnx_program(tmp_path)
    recipe = tiny(path, "distill.teacher_mean=[0.1]", "distill.teacher_std=[0.5]")
    teacher = live_teacher(recipe, CLASSES)
    seen = model_input(batch_of(), recipe.preprocessing)
    np.testing.assert_allclose(
        teacher.answers(batch_of()), expected((seen * 0.2 + 0.4 - 0.1) / 0.5), atol=1e-5
    )
    assert not any("bundle.json" in note for note in teacher.notes)
    assert teacher.identity()["mean"] == [0.1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["distill.teacher_mean=[0.1]"], "go together; give both"),
        (["distill.teacher_std=[0.1]"], "go together; give both"),
        (["distill.teacher_mean=[0.1]", "distill.teacher_std=[0]"], "std must be above 0"),
        (["distill.teacher_mean=[0.1]", "distill.teacher_std=[1, 1]"], "mean has 1 values and std"),
    ],
)
def test_mean_and_std_are_checked(settings: list[str], said: str) -> None:
    with pytest.raises(XciteError, match=said) as caught:
        tiny("teacher.onnx", *settings)
    assert "distill.teacher_mean" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", installed())
def test_what_an_engine_saves_teaches_alone_and_in_a_bundle(engine: str, tmp_path: Path) -> None:
    fields = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    architecture = find("xcit_nano_12_p8", num_classes=3, in_chans=1, **fields)
    running = create_engine(engine, architecture)
    outputs = running.save_program(tmp_path / "inference")
    path = tmp_path / ("inference.pt2" if engine == "torch" else "inference.json")
    recipe = tiny(path)
    seen = model_input(batch_of(), recipe.preprocessing)
    teacher = live_teacher(recipe, CLASSES)
    np.testing.assert_allclose(
        teacher.answers(batch_of()), running.predict(seen), rtol=1e-4, atol=1e-5
    )
    if engine == "torch":
        return
    info = BundleInfo(
        format="paddle",
        precision="f32",
        architecture=describe(architecture),
        size=None,
        preprocessing=Preprocessing(size=16, mean=(0.1,), std=(0.5,)),
        class_names=["fox", "cat", "dog"],
        outputs=outputs,
        agreement={},
    )
    seal_folder(tmp_path, info)
    for place in (tmp_path, path):
        known = facts(tiny(place), CLASSES)
        assert (known.class_names, known.preprocessing.mean) == (info.class_names, (0.1,))
        teacher = live_teacher(tiny(place), CLASSES)
        logits = running.predict(((seen * 0.2 + 0.4 - 0.1) / 0.5).astype(np.float32))
        np.testing.assert_allclose(
            teacher.answers(batch_of()), logits[:, [1, 2, 0]], rtol=1e-4, atol=1e-5
        )
    (tmp_path / "inference.pdiparams").write_bytes(b"0")
    with pytest.raises(XciteError, match=rf"cannot read the teacher {tmp_path}: .*altered"):
        facts(tiny(tmp_path), CLASSES)


# --- what is refused --------------------------------------------------------------------------


def test_pickles_and_indices_are_no_programs(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(torch_model().state_dict(), tmp_path / "weights.pt")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": 1}))
    for name in ("weights.pt", "model.safetensors.index.json", "plain.pt", "missing.pt2"):
        assert not is_program(tmp_path / name)
        with pytest.raises(XciteError, match="is not a program"):
            open_program(tmp_path / name)


class Evil:
    """Pickled, it writes a file when it is read."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.place, "executed")


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The archive again, its members changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def member(members: dict[str, bytes], end: str) -> str:
    return next(name for name in members if name.endswith(end))


def edited(
    members: dict[str, bytes], old: str, new: str, *, part: str = "models/model.json"
) -> None:
    name = member(members, part)
    text = members[name].decode()
    assert old in text
    members[name] = text.replace(old, new).encode()


def test_sample_inputs_and_guards_of_an_archive_are_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    evil = io.BytesIO()
    pytest.importorskip("torch").save(Evil(marker), evil)

    def change(members: dict[str, bytes]) -> None:
        members[member(members, "sample_inputs/model.pt")] = evil.getvalue()
        name = member(members, "models/model.json")
        told = json.loads(members[name])
        told["guards_code"] = [f"__import__('pathlib').Path({str(marker)!r}).write_text('guard')"]
        members[name] = json.dumps(told).encode()

    path = rewritten(exported(tmp_path), change)
    images = np.ones((2, 1, 16, 16), np.float32)
    np.testing.assert_allclose(open_program(path).logits(images), expected(images), atol=1e-6)
    assert not marker.exists()


EDITS: dict[str, tuple[str, str, str]] = {
    "a shape": (
        "Symbol('s77', positive=True, integer=True)",
        "__import__('os').getcwd()",
        "computes a shape by",
    ),
    "an attribute in a shape": ("Symbol('s77',", "Symbol.mro('s77',", "computes a shape by"),
    "an operator": ("torch.ops.aten.mean.dim", "torch.ops.load_library", "which is no operator"),
    "a dunder": ("torch.ops.aten.mean.dim", "torch.ops.aten.x.__call__", "which is no operator"),
    "a file": ("torch.ops.aten.mean.dim", "torch.ops.aten.from_file.default", "no operator"),
    "Python": ("torch.ops.aten.mean.dim", "torch.hub.load", "which is no operator"),
    "a name": ('"images"', '"images=print(1)"', "has a name that is none"),
    "a class": ("builtins.tuple", "subprocess.Popen", "takes or gives a 'subprocess.Popen'"),
}


@pytest.mark.parametrize("kind", EDITS)
def test_what_an_archive_could_evaluate_is_refused(kind: str, tmp_path: Path) -> None:
    old, new, said = EDITS[kind]
    path = exported(tmp_path)
    if "Symbol" in old:
        with zipfile.ZipFile(path) as archive:
            text = archive.read(member(dict.fromkeys(archive.namelist(), b""), "model.json"))
        old = old.replace("s77", text.decode().split("Symbol('")[1].split("'")[0])
    rewritten(path, lambda members: edited(members, old, new))
    with pytest.raises(XciteError, match=rf"^teacher {path} .*{said}"):
        facts(tiny(path), CLASSES)


@pytest.mark.parametrize(
    "name",
    [
        "data/aotinductor/model/model.so",
        "data/constants/opaque_obj_0",
        "data/weights/model.pt",
        "models/other.json",
    ],
)
def test_pickles_and_machine_code_in_an_archive_are_refused(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    def change(members: dict[str, bytes]) -> None:
        root = member(members, "archive_format").split("/")[0]
        members[f"{root}/{name}"] = pickle.dumps(Evil(marker))

    path = rewritten(exported(tmp_path), change)
    with pytest.raises(XciteError, match=rf"teacher {path} holds '{name}', a pickle"):
        facts(tiny(path), CLASSES)
    config = "model_weights_config.json"
    rewritten(
        exported(tmp_path),
        lambda members: edited(members, '"use_pickle": false', '"use_pickle": true', part=config),
    )
    with pytest.raises(XciteError, match="holds pickled tensors"):
        facts(tiny(path), CLASSES)
    assert not marker.exists()


@pytest.mark.parametrize("part", ["/data.pkl", "/constants.pkl"])
def test_a_pickle_in_a_torchscript_archive_calls_nothing(part: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    def change(members: dict[str, bytes]) -> None:
        members[member(members, part)] = pickle.dumps(Evil(marker), protocol=2)

    path = rewritten(scripted(tmp_path), change)
    with pytest.raises(XciteError, match=rf"^TorchScript cannot read teacher {path}: "):
        facts(tiny(path), CLASSES)
    assert not marker.exists()


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:200])
    return path


def without_weights(folder: Path) -> Path:
    path = paddle_program(folder)
    (folder / "teacher.pdiparams").unlink()
    return path


def no_logits(folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    path = folder / "teacher.pt"
    torch.jit.trace(torch.nn.AvgPool2d(4), torch.zeros(4, 1, 16, 16)).save(path)
    return path


def one_batch(folder: Path) -> Path:
    torch = pytest.importorskip("torch")

    class Cut(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, images: Any) -> Any:
            return images.reshape(4, 256)[:, :3]

    path = folder / "teacher.pt"
    torch.jit.trace(Cut(), torch.zeros(4, 1, 16, 16)).save(path)
    return path


def flat(folder: Path, *shape: int) -> Path:
    torch = pytest.importorskip("torch")
    path = folder / "teacher.pt2"
    torch.export.save(torch.export.export(torch.nn.Flatten(), (torch.zeros(4, *shape),)), path)
    return path


def broken_archive(folder: Path) -> Path:
    def change(members: dict[str, bytes]) -> None:
        for name in [name for name in members if name.endswith(".py")]:
            del members[name]

    return rewritten(scripted(folder), change)


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no weights beside it": (without_weights, r"teacher\.pdiparams is not beside it"),
    "no logits": (no_logits, r"gives no logits \(B, classes\) for 2 pictures, but output"),
    "one batch in a trace": (one_batch, r"shape '\[4, 256\]' is invalid .*save it for any"),
    "other channels": (lambda folder: flat(folder, 3, 16, 16), r"\(4, 3, 16, 16\); expected"),
    "not of images": (lambda folder: flat(folder, 256), r"\(4, 256\); expected \(B, 1, H, W\)"),
    "a broken archive": (broken_archive, "TorchScript cannot read"),
    "no ONNX": (lambda folder: cut(onnx_program(folder)), "cannot read the teacher"),
    "an archive cut short": (lambda folder: cut(exported(folder)), "the zip directory is missing"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_whatever_is_wrong_the_teachers_file_is_named(kind: str, tmp_path: Path) -> None:
    make, said = REFUSED[kind]
    path = make(tmp_path)
    with pytest.raises(XciteError, match=said) as caught:
        live_teacher(tiny(path), CLASSES)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_older_pytorch_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.8")
        archive.writestr("serialized_exported_program.json", "{}")
    with pytest.raises(
        XciteError, match=rf"^teacher {path} is not as PyTorch 2\.8 and later write"
    ):
        facts(tiny(path), CLASSES)
