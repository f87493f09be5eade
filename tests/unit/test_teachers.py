"""Teachers: what they see, whose classes they answer in, and that they never learn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from xcite import canonical
from xcite import recipe as recipes
from xcite.alignment.trial import moved_weights
from xcite.data.batch import Batch, Mixing, split
from xcite.engines import create_engine, installed
from xcite.engines.interface import Engine
from xcite.engines.pixels import model_input
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.recipe import Recipe
from xcite.runtime.bundle import BundleInfo, seal_folder
from xcite.runtime.classes import match_classes
from xcite.training.teachers.build import build_teacher
from xcite.training.teachers.facts import facts, weights_digest
from xcite.training.teachers.live import live_teacher, resize
from xcite.variants import Architecture, RegNetArchitecture, find
from xcite.weights import Metadata, save_weights
from xcite.weights.imagenet import imagenet_classes, imagenet_wnids

CLASSES = ["cat", "dog", "fox"]
TINY = """
model: {name: xcit_nano_12_p8, patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}
preprocessing: {size: 16, mean: [0.4], std: [0.2]}
optim: {batch: 8, epochs: 2, warmup_epochs: 0, lr_per: null}
"""
REGNET = RegNetArchitecture(
    w0=8, wa=8.0, wm=2.0, group_size=8, depth=2, stem_width=8, num_classes=3, in_chans=1
)


def tiny(*settings: str) -> Recipe:
    return recipes.parse(TINY, "tiny", [f"run.engine={installed()[0]}", *settings])


def student(recipe: Recipe, engine: str) -> Engine:
    architecture = find(recipe.model.name, num_classes=3, in_chans=1, **recipe.model.overrides())
    return create_engine(engine, architecture)


def batch_of(count: int = 8, size: int = 16) -> Batch:
    """A batch that is erased, blended and pasted."""
    random = np.random.default_rng(0)
    boxes = np.full((count, 4), -1, np.int32)
    boxes[1::2] = (2, 9, 3, 12)
    return Batch(
        pictures=random.integers(0, 256, (count, size, size, 1), np.uint8),
        labels=np.zeros(count, np.int64),
        views=np.stack([np.arange(count), np.zeros(count, np.int64)], axis=1),
        targets=np.full((count, 3), 1 / 3, np.float32),
        erased=[(2, 1, 1, random.standard_normal((1, 5, 6)).astype(np.float32))],
        mixing=Mixing(np.full(count, 0.7, np.float32), boxes),
    )


def saved(
    path: Path, architecture: Architecture, names: list[str] | None = None, **preprocessing: object
) -> canonical.Weights:
    """A teacher's weights file; its classes and preprocessing as given."""
    weights = moved_weights(architecture, seed=3)
    own = Preprocessing(**({"size": 16, "mean": (0.4,), "std": (0.2,)} | preprocessing))
    metadata = Metadata(architecture=architecture, class_names=names, preprocessing=own)
    save_weights(path, weights, metadata)
    return weights


def test_without_distillation_there_is_no_teacher() -> None:
    recipe = tiny()
    assert build_teacher(recipe, None, CLASSES) is None


@pytest.mark.parametrize("engine", installed())
def test_a_teacher_sees_the_students_mixed_input_and_never_moves(
    engine: str, tmp_path: Path
) -> None:
    path = tmp_path / "teacher.safetensors"
    weights = saved(path, REGNET, CLASSES)
    recipe = tiny("distill.loss=hard", f"distill.teacher={path}", f"run.engine={engine}")
    learner = student(recipe, engine)
    teacher = live_teacher(recipe, CLASSES)
    assert not teacher.notes
    batch = batch_of()
    images = model_input(batch, recipe.preprocessing)
    running = teacher.predict.__self__  # type: ignore[attr-defined]
    expected = running.predict(images).argmax(1)

    learner.start_training(recipe.optim, recipe.distill, recipe.preprocessing)
    for _ in range(3):
        answers = teacher.answers(batch)
        learner.train_step([batch], learning_rate=1e-3, paths=[None], teacher=[answers])
    assert answers.dtype == np.int64
    np.testing.assert_array_equal(answers, expected)
    after = running.read_weights()
    assert any(name.endswith("running_var") for name in after)
    for name, value in weights.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(after[name], value, err_msg=name)


def test_parts_of_a_batch_get_the_answers_of_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    saved(path, REGNET, CLASSES)
    recipe = tiny("distill.loss=soft", f"distill.teacher={path}")
    teacher = live_teacher(recipe, CLASSES)
    assert teacher is not None
    batch = batch_of()
    whole = dict(zip(batch.views[:, 0], teacher.answers(batch), strict=True))
    for part in split(batch, 2):
        for index, logits in zip(part.views[:, 0], teacher.answers(part), strict=True):
            np.testing.assert_allclose(logits, whole[index], atol=1e-5)


@pytest.mark.parametrize("engine", installed())
def test_classes_in_another_order_are_matched_by_name(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    saved(path, REGNET, ["fox", "cat", "dog"])
    settings = ["distill.loss=soft", f"distill.teacher={path}", f"distill.teacher_engine={engine}"]
    recipe = tiny(*settings)
    teacher = live_teacher(recipe, CLASSES)
    images = model_input(batch_of(), recipe.preprocessing)
    logits = teacher.predict(images)
    np.testing.assert_array_equal(teacher.answers(batch_of()), logits[:, [1, 2, 0]])
    assert teacher.notes == [
        f"the classes of teacher {path} are in another order and were matched by name"
    ]
    assert teacher.identity()["engine"] == engine
    with pytest.raises(XciteError, match="does not know owl; its classes: fox, cat, dog; the stud"):
        live_teacher(recipe, ["cat", "dog", "owl"])
    with pytest.raises(XciteError, match="does not know 0, 1, 2; its classes: fox, cat, dog; the"):
        live_teacher(recipe, ["0", "1", "2"])


def test_class_matching_rules() -> None:
    columns, note = match_classes(["a", "b", "c", "d"], ["d", "b"], model="t", data="the student")
    assert columns is not None
    assert columns.tolist() == [3, 1]
    assert note == "the student has 2 of the 4 classes of t"
    assert match_classes(["a", "b"], ["a", "b"], count=2) == (None, None)
    columns, note = match_classes(None, ["a", "b"], count=2)
    assert columns is None
    assert note is not None
    assert "names no classes" in note
    with pytest.raises(XciteError, match="the model names no classes and has 3, the data has 2"):
        match_classes(None, ["a", "b"], count=3)


def test_a_teacher_of_another_size_and_normalisation(tmp_path: Path) -> None:
    architecture = find(
        "xcit_nano_12_p8",
        num_classes=3,
        in_chans=1,
        patch_size=4,
        embed_dim=16,
        depth=1,
        num_heads=2,
    )
    path = tmp_path / "teacher.safetensors"
    saved(path, architecture, CLASSES, size=99, mean=(0.1,), std=(0.5,))
    recipe = tiny("distill.loss=soft", f"distill.teacher={path}", "distill.teacher_size=24")
    teacher = live_teacher(recipe, CLASSES)
    seen = model_input(batch_of(), recipe.preprocessing)
    pixels = (seen * 0.2 + 0.4 - 0.1) / 0.5
    enlarged = np.stack(
        [
            np.asarray(Image.fromarray(image[0]).resize((24, 24), Image.Resampling.BILINEAR))[None]
            for image in pixels.astype(np.float32)
        ]
    )
    np.testing.assert_allclose(teacher.answers(batch_of()), teacher.predict(enlarged), atol=1e-4)
    assert teacher.identity()["size"] == 24
    assert teacher.identity()["mean"] == [0.1]


def test_imagenet_folders_are_matched_and_guessed_names_refuse_nothing(tmp_path: Path) -> None:
    names = imagenet_classes()
    folders = imagenet_wnids()
    columns, note = match_classes(names, folders)
    assert columns is None
    assert note is not None
    # A published file names no classes; a subset of ImageNet's names still finds its own.
    thousand = replace(REGNET, num_classes=1000, in_chans=3)
    weights = {
        name: value
        for name, value in moved_weights(thousand).items()
        if not name.endswith("num_batches_tracked")
    }
    path = tmp_path / "regnety_160.safetensors"
    save_file(weights, path)
    colours = ["preprocessing.mean=[0.4, 0.4, 0.4]", "preprocessing.std=[0.2, 0.2, 0.2]"]
    recipe = tiny("distill.loss=hard", f"distill.teacher={path}", *colours)
    known = facts(recipe, ["goldfish", "tench"])
    assert known.class_names == names
    assert known.preprocessing.mean == (0.485, 0.456, 0.406)
    assert facts(recipe, folders).class_names is None
    with pytest.raises(
        XciteError,
        match=r"teacher .*regnety_160\.safetensors names no classes and has 1000, the",
    ):
        live_teacher(recipe, CLASSES)


def test_a_named_teacher_model_must_fit_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    saved(path, REGNET, CLASSES)
    own = "{name: regnety_160, w0: 8, wa: 8.0, wm: 2.0, group_size: 8, depth: 2, stem_width: 8}"
    named = ["distill.loss=hard", f"distill.teacher={path}"]
    assert facts(tiny(*named, f"distill.teacher_model={own}"), CLASSES).classes == 3
    with pytest.raises(XciteError, match=r"^teacher .*\.safetensors is .* do not fit the model"):
        facts(tiny(*named, "distill.teacher_model.name=regnety_160"), CLASSES)


@pytest.mark.parametrize("size", [5, 16, 21, 40])
def test_resizing_is_pillows_antialiased_bilinear(size: int) -> None:
    image = np.random.default_rng(1).standard_normal((20, 20)).astype(np.float32)
    expected = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(resize(image[None, None], size)[0, 0], expected, atol=1e-5)


def test_the_hash_is_of_the_numbers_not_of_the_file() -> None:
    weights = moved_weights(REGNET)
    known = weights_digest(weights)
    without_counters = {n: v for n, v in weights.items() if not n.endswith("num_batches_tracked")}
    assert weights_digest(dict(reversed(without_counters.items()))) == known
    weights["head.fc.bias"] = weights["head.fc.bias"] + np.float32(1e-6)
    assert weights_digest(weights) != known


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_an_onnx_file_teaches(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip(runtime)
    if runtime == "onnxruntime":
        monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    matrix = np.random.default_rng(2).standard_normal((256, 3)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Flatten", ["images"], ["flat"]),
            onnx.helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
        ],
        "teacher",
        [onnx.helper.make_tensor_value_info("images", 1, ["batch", 1, 16, 16])],
        [onnx.helper.make_tensor_value_info("logits", 1, ["batch", 3])],
        [onnx.numpy_helper.from_array(matrix, "matrix")],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    path = tmp_path / "teacher.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    recipe = tiny("distill.loss=soft", f"distill.teacher={path}")
    teacher = live_teacher(recipe, CLASSES)
    images = model_input(batch_of(), recipe.preprocessing)
    np.testing.assert_allclose(
        teacher.answers(batch_of()), images.reshape(8, -1) @ matrix, rtol=1e-4, atol=1e-4
    )
    assert teacher.identity()["engine"] == runtime
    assert len(teacher.notes) == 2  # neither classes nor normalisation are known
    larger = tiny("distill.loss=soft", f"distill.teacher={path}", "distill.teacher_size=20")
    with pytest.raises(
        XciteError, match=r"teacher\.onnx takes pictures of 16 x 16 .* is 20, leave"
    ):
        live_teacher(larger, CLASSES)
    assert facts(recipe, CLASSES).classes == 3
    with pytest.raises(XciteError, match=r"teacher\.onnx names no classes and has 3, the student"):
        live_teacher(recipe, [*CLASSES, "owl"])
    # In a bundle, the description says how it sees pictures, and the seal must hold.
    info = BundleInfo(
        format="onnx",
        precision="f32",
        architecture={"kind": "xcit"},
        size=(16, 16),
        preprocessing=Preprocessing(size=16, mean=(0.1,), std=(0.5,)),
        class_names=["fox", "cat", "dog"],
        outputs=["logits"],
        agreement={},
    )
    seal_folder(tmp_path, info)
    known = facts(recipe, CLASSES)
    assert (known.class_names, known.preprocessing.mean) == (info.class_names, (0.1,))
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(
        XciteError, match=r"cannot read the teacher .*teacher\.onnx: .*export again"
    ):
        live_teacher(recipe, CLASSES)
    (tmp_path / "bundle.json").unlink()
    path.write_bytes(b"no graph")
    with pytest.raises(XciteError, match=r"cannot read the teacher .*teacher\.onnx"):
        live_teacher(recipe, CLASSES)


def test_other_channels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    saved(path, REGNET, CLASSES)
    colours = tiny(
        "distill.loss=hard",
        f"distill.teacher={path}",
        "preprocessing.mean=[0.4, 0.4, 0.4]",
        "preprocessing.std=[0.2, 0.2, 0.2]",
    )
    with pytest.raises(XciteError, match="expects 1 channels, the student's pictures have 3"):
        facts(colours, CLASSES)


def regnet(path: Path, **changes: object) -> None:
    """A RegNet under timm's names, with tensors left out (None) or put in."""
    weights = moved_weights(REGNET) | changes
    save_file({name: value for name, value in weights.items() if value is not None}, path)


def claiming(path: Path, said: str) -> None:
    """Xcite's own file, whose metadata say so."""
    save_file(moved_weights(REGNET), path, {"xcite": said})


DEEP = np.zeros((8, 8, 1, 1), np.float32)
BROKEN = {
    "missing": (lambda path: None, "there is no weights file"),
    "no model": (lambda path: save_file({"a": DEEP}, path), "holds no XCiT"),
    "a tensor too few": (
        lambda path: regnet(path, **{"s1.b1.conv2.bn.weight": None}),
        r"missing: s1\.b1\.conv2\.bn\.weight",
    ),
    "a block too few": (
        lambda path: regnet(path, **{"s1.b1.conv1.conv.weight": None}),
        "the architecture cannot be read|missing",
    ),
    "unreadable metadata": (lambda path: claiming(path, "{"), "metadata cannot be read"),
    "unknown metadata": (
        lambda path: claiming(path, '{"architecture": {"kind": "regnet", "wings": 2}}'),
        "cannot be read|unknown field",
    ),
    "damaged": (lambda path: path.write_bytes(b"\x80\x02}q\x00"), "is refused"),
    "a picture": (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" * 9), "a picture"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_whatever_is_wrong_with_weights_their_file_is_named(kind: str, tmp_path: Path) -> None:
    make, said = BROKEN[kind]
    path = tmp_path / "regnet.safetensors"
    make(path)
    recipe = tiny("distill.loss=hard", f"distill.teacher={path}")
    for call in (facts, live_teacher):
        with pytest.raises(XciteError, match=said) as caught:
            call(recipe, CLASSES)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{name: regnety_160}", "is no regnety_160: .*; missing|of another shape"),
        ("{name: xcit_nano_12_p8}", "is no xcit_nano_12_p8: .*missing: "),
        ("{name: xcit_nano_12_p8, embed_dim: 30}", "embed_dim 30 is not a multiple"),
    ],
)
def test_a_wrong_teacher_model_names_the_teachers_file(
    settings: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "teacher.safetensors"
    saved(path, REGNET, CLASSES)
    recipe = tiny(
        "distill.loss=hard", f"distill.teacher={path}", f"distill.teacher_model={settings}"
    )
    with pytest.raises(XciteError, match=rf"^teacher {path}.*({said})"):
        live_teacher(recipe, CLASSES)
