"""What a Predictor takes as pictures, what it says of bad ones, and how it ends."""

import copy
import gzip
import io
import itertools
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xcite import Predictor, XciteError
from xcite.canonical import initial_weights
from xcite.engines import installed
from xcite.preprocessing import Preprocessing
from xcite.runtime import UnreadablePicture
from xcite.variants import XCiTArchitecture
from xcite.weights import Metadata, WeightFile

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(not installed(), reason="an export is compared with an engine")

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 24, 40, 3), np.uint8)  # (B, H, W, C)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    from xcite.export.export import export
    from xcite.export.options import ExportOptions

    shape = XCiTArchitecture(patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=6)
    tensors = initial_weights(shape, 0)
    tensors["head.weight"] = 30 * tensors["head.weight"]  # so that pictures differ
    metadata = Metadata(
        architecture=shape,
        preprocessing=Preprocessing(size=16),
        class_names=["ant", "bee", "cow", "dog", "elk", "fox"],
    )
    place = tmp_path_factory.mktemp("predictor") / "bundle"
    export(WeightFile(tensors, shape, "xcite", metadata), place, ExportOptions(format="onnx"))
    return place


@pytest.fixture(scope="module")
def predictor(bundle):
    return Predictor(bundle, runtime="onnxruntime")


@pytest.fixture(scope="module")
def expected(predictor):
    return predictor.predict(list(PIXELS))


@pytest.fixture
def folder(tmp_path):
    for number, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def alike(answers, expected):
    """The same classes; a batch of another size may round the last bits otherwise."""
    assert [[name for name, _ in one] for one in answers] == [[n for n, _ in e] for e in expected]
    for one, other in zip(answers, expected, strict=True):
        np.testing.assert_allclose([p for _, p in one], [p for _, p in other], rtol=1e-4)


class Tabled:
    """An array of a library that NumPy knows through ``__array__`` alone."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values


class Exported:
    """An array of a library that offers DLPack alone."""

    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


FORMS = {
    "batch": lambda: PIXELS,
    "arrays": lambda: list(PIXELS),
    "tuple": lambda: tuple(PIXELS),
    "generator": lambda: (pixels for pixels in PIXELS),
    "column of objects": lambda: np.array([png(p) for p in PIXELS], dtype=object),
    "bytes": lambda: [png(p) for p in PIXELS],
    "bytearrays": lambda: [bytearray(png(p)) for p in PIXELS],
    "memoryviews": lambda: [memoryview(png(p)) for p in PIXELS],
    "files": lambda: [io.BytesIO(png(p)) for p in PIXELS],
    "Pillow": lambda: [Image.fromarray(p) for p in PIXELS],
    "floating point": lambda: PIXELS.astype(np.float64) / 255,
    "half precision": lambda: [(p / 255).astype(np.float32) for p in PIXELS],
    "__array__": lambda: [Tabled(p) for p in PIXELS],
    "batch of __array__": lambda: Tabled(PIXELS),
    "__dlpack__": lambda: [Exported(p) for p in PIXELS],
    "not contiguous": lambda: np.asfortranarray(PIXELS),
    "mixed": lambda: [PIXELS[:2], png(PIXELS[2])],
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_pictures(predictor, expected, form):
    alike(predictor.predict(FORMS[form]()), expected)


@pytest.mark.parametrize("form", ["bytes", "bytearrays", "memoryviews", "files", "Pillow"])
def test_one_picture_alone(predictor, expected, form):
    alike(predictor.predict(FORMS[form]()[0]), expected[:1])
    assert (predictor.pixels(FORMS[form]()[0]) == predictor.pixels(PIXELS[0])).all()


@pytest.mark.parametrize("framework", ["torch", "paddle"])
def test_tensors_are_channels_first(predictor, expected, framework):
    library = pytest.importorskip(framework)
    make = library.tensor if framework == "torch" else library.to_tensor
    batch = make(PIXELS.transpose(0, 3, 1, 2).copy())  # (B, C, H, W)
    alike(predictor.predict(batch), expected)
    alike(predictor.predict(list(batch)), expected)
    alike(predictor.predict(batch[0]), expected[:1])
    floating = make(PIXELS.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    alike(predictor.predict(floating), expected)
    floating.stop_gradient = False  # Paddle's word
    if framework == "torch":
        floating.requires_grad_()
    alike(predictor.predict(floating), expected)
    (error,) = predictor.predict(make(PIXELS[0]), on_error="return")
    assert "a tensor is (C, H, W)" in str(error)
    assert "permute(2, 0, 1)" in str(error)


@pytest.mark.parametrize("framework", ["torch", "paddle"])
def test_bfloat16_tensors_are_numbers_not_bits(predictor, framework):
    """Paddle's ``numpy()`` gives the bits of bfloat16 as uint16, PyTorch's refuses."""
    library = pytest.importorskip(framework)
    white = library.ones([3, 16, 16], dtype=library.bfloat16)
    alike(predictor.predict(white), predictor.predict(np.full((16, 16, 3), 255, np.uint8)))


@pytest.mark.parametrize("framework", ["torch", "paddle"])
def test_normalised_images_may_be_tensors(predictor, framework):
    library = pytest.importorskip(framework)
    images = predictor.images(np.stack([predictor.pixels(p) for p in PIXELS]))
    make = library.tensor if framework == "torch" else library.to_tensor
    np.testing.assert_array_equal(predictor.logits(make(images)), predictor.logits(images))


def test_paths_folders_and_patterns(predictor, expected, folder):
    (folder / "note.txt").write_text("no picture")
    alike(predictor.predict(folder / "1.png"), expected[1:2])
    alike(predictor.predict([str(folder / "0.png"), folder / "1.png"]), expected[:2])
    alike(predictor.predict(str(folder / "*.png")), expected)
    alike(predictor.predict(folder / "[12].png"), expected[1:])
    with pytest.warns(UserWarning, match=r"left out: 1 .*note\.txt"):
        answers = predictor.predict(folder)
    alike(answers, expected)
    assert [Path(answer.picture).name for answer in answers] == ["0.png", "1.png", "2.png"]
    with (folder / "2.png").open("rb") as file:
        (answer,) = predictor.predict(file)
    assert answer.picture == str(folder / "2.png")
    assert answer == expected[2]


def test_a_generator_is_read_lazily(predictor):
    """An endless one is answered batch by batch, and nothing is held beyond its batch."""
    taken = []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield PIXELS[number % 3]

    answers = predictor.predict_each(endless(), batch=2)
    assert not taken
    first = [next(answers) for _ in range(3)]
    assert len(taken) == 4
    assert [answer.picture for answer in first] == ["picture 0", "picture 1", "picture 2"]


NAN = PIXELS[0].astype(np.float32) / 255
NAN[3, 4, 1] = np.nan
CLOSED = io.BytesIO(b"")
CLOSED.close()
BAD = {
    "nothing": (None, "NoneType is no picture"),
    "a number": (3, "int is no picture"),
    "a dictionary": ({"image": b""}, "dict is no picture"),
    "a list in the list": ([PIXELS[0]], "list is no picture"),
    "no bytes": (b"", "not a picture"),
    "other bytes": (b"not a picture at all", "not a picture"),
    "a damaged picture": (png(PIXELS[0])[:200], "damaged"),
    "a missing file": ("/nowhere/cat.jpg", "/nowhere/cat.jpg: no such file"),
    "a pattern without match": ("/nowhere/*.jpg", "none that matches"),
    "text": (io.StringIO("text"), "binary mode"),
    "a file at its end": (io.BytesIO(), "nothing is left to read"),
    "a damaged archive": (
        gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(bytes(99))[:20])),
        "cannot be read",
    ),
    "a closed file": (CLOSED, "cannot be read"),
    "NaN": (NAN, "NaN"),
    "0 to 255 in floating point": (PIXELS[0].astype(np.float32), "divide pixels by 255"),
    "normalised": (np.float32(PIXELS[0]) / 128 - 1, "Predictor.logits"),
    "integers": (PIXELS[0].astype(np.int64), "pixels of type int64"),
    "booleans": (PIXELS[0] > 9, "pixels of type bool"),
    "words": (np.array([["a", "b"]]), "pixels of type <U1"),
    "channels first": (PIXELS[0].transpose(2, 0, 1), "transpose(1, 2, 0)"),
    "five dimensions": (PIXELS[None], "of shape (1, 3, 24, 40, 3) is no picture"),
    "no pixels": (PIXELS[0][:0], "no pixels"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_picture_stands_in_its_place(predictor, expected, kind):
    bad, words = BAD[kind]
    pictures = [PIXELS[0], bad, PIXELS[2]]
    first, error, last = predictor.predict(pictures, on_error="return")
    alike([first, last], [expected[0], expected[2]])
    assert isinstance(error, UnreadablePicture)
    assert words in str(error)
    assert str(error).startswith(error.picture)
    assert error.picture == (bad if isinstance(bad, str) else "picture 1")
    assert "\n" not in str(error)
    with pytest.raises(UnreadablePicture, match=re.escape(words)):
        predictor.predict(pictures)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.picture) == (str(error), error.picture)


def test_only_bad_pictures_and_none_at_all(predictor):
    assert [type(e) for e in predictor.predict([b"", None], on_error="return")] == [
        UnreadablePicture
    ] * 2
    assert predictor.predict([]) == predictor.predict(PIXELS[:0]) == []


def test_one_bad_picture_of_a_batch(predictor, expected):
    batch = PIXELS.astype(np.float32) / 255
    batch[1, 0, 0, 0] = np.inf
    first, error, last = predictor.predict(batch, on_error="return")
    alike([first, last], [expected[0], expected[2]])
    assert "NaN or infinite" in str(error)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top": 0}, "top"),
        ({"on_error": "skip"}, "choose raise or return"),
        ({"batch": 0}, "batch"),
    ],
)
def test_unfit_options_are_refused_at_once(predictor, options, words):
    with pytest.raises(XciteError, match=words):
        predictor.predict_each([PIXELS[0]], **options)


def test_images_that_the_graph_cannot_take(predictor):
    images = np.zeros((2, 3, 16, 16), np.float32)
    images[1, 2, 3, 4] = np.nan
    with pytest.raises(XciteError, match="image 1 of the batch of 2 has NaN"):
        predictor.logits(images)
    with pytest.raises(XciteError, match="list is no array"):
        predictor.logits(images.tolist())
    with pytest.raises(XciteError, match="float64"):
        predictor.logits(np.zeros((1, 3, 16, 16)))
    with pytest.raises(XciteError, match="expected uint8"):
        predictor.images(np.zeros((1, 16, 16, 3), np.float32))
    with pytest.raises(XciteError, match="give one picture"):
        predictor.pixels(PIXELS)


def test_pickles_and_copies_answer_the_same(predictor, expected, monkeypatch, tmp_path):
    data = pickle.dumps(predictor)
    monkeypatch.chdir(tmp_path)
    for other in (pickle.loads(data), copy.copy(predictor), copy.deepcopy(predictor)):
        assert other.predict(list(PIXELS)) == expected
        assert (other.runtime, other.threads) == (predictor.runtime, predictor.threads)
    answer = pickle.loads(pickle.dumps(expected[0]))
    assert (answer, answer.picture) == (expected[0], "picture 0")


def test_a_relative_bundle_is_found_from_elsewhere(bundle, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(bundle.parent)
    data = pickle.dumps(Predictor(bundle.name, runtime="onnxruntime"))
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(data).predict(list(PIXELS)) == expected


def test_a_pickle_refuses_another_bundle(bundle, tmp_path):
    import shutil

    from xcite.runtime.bundle import read_info, seal_folder

    place = tmp_path / "bundle"
    shutil.copytree(bundle, place)
    data = pickle.dumps(Predictor(place))
    info = read_info(place)
    seal_folder(place, info.model_copy(update={"class_names": list("abcdef")}))
    another = pickle.loads(data)  # a pool's worker that cannot unpickle would die unheard
    with pytest.raises(XciteError, match="exported again"):
        another.predict(PIXELS)


def test_closing(bundle):
    with Predictor(bundle, runtime="onnxruntime") as predictor:
        assert len(predictor.predict(PIXELS[0])) == 1
    predictor.close()
    for action in (
        lambda: predictor.predict(PIXELS[0]),
        lambda: predictor.__enter__(),
        lambda: pickle.dumps(predictor),
    ):
        with pytest.raises(XciteError, match="is closed"):
            action()


def test_no_warning_where_nothing_is_left_out(predictor, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor.predict(folder)


def test_what_is_loaded_is_said(predictor, bundle):
    assert repr(predictor) == f"Predictor({str(bundle)!r}, runtime='onnxruntime')"
