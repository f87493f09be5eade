"""A program as the teacher, on the command line: planned, taught, trained with, refused."""

import numpy as np
import pytest
from painted_classes import paint

from xcite.cli import main
from xcite.engines import installed

COLOURS = {"green": 3, "red": 900, "dark": 40}


def call(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


@pytest.fixture(params=["teacher.pt2", "teacher.json", "teacher.pt"])
def program(request, tmp_path):
    """Three logits of three channels' means."""
    matrix = np.random.default_rng(2).standard_normal((3, 3)).astype(np.float32)
    path = tmp_path / request.param
    if request.param == "teacher.json":
        paddle = pytest.importorskip("paddle")
        head = paddle.nn.Linear(3, 3)
        head.weight.set_value(matrix)
        model = paddle.nn.Sequential(paddle.nn.AdaptiveAvgPool2D(1), paddle.nn.Flatten(), head)
        model.eval()
        spec = paddle.static.InputSpec([None, 3, 16, 16], "float32", "images")
        paddle.jit.save(model, str(path.with_suffix("")), input_spec=[spec])
        return path
    torch = pytest.importorskip("torch")
    head = torch.nn.Linear(3, 3)
    head.weight.data = torch.from_numpy(matrix)
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), head).eval()
    images = torch.zeros(2, 3, 16, 16)
    if request.param == "teacher.pt2":
        torch.export.save(torch.export.export(model, (images,)), path)  # a batch of 2 alone
    else:
        with pytest.warns(DeprecationWarning, match="deprecated"):
            torch.jit.trace(model, images).save(path)
    return path


def test_a_program_teaches_from_the_command_line(program, tmp_path, capsys):
    for name, colour in COLOURS.items():
        for number in range(4):
            paint(tmp_path / "data" / name / f"{number}.png", colour + number % 3)
    settings = {
        "data.train": tmp_path / "data",
        "data.workers": 0,
        "data.holdout": "null",
        "optim.epochs": 1,
        "optim.batch": 6,
        "optim.warmup_epochs": 0,
        "preprocessing.size": 16,
        "model": "{name: xcit_nano_12_p8, patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}",
        "distill.loss": "soft",
        "distill.teacher": program,
        "distill.teacher_mean": "[0, 0, 0]",
        "distill.teacher_std": "[1, 1, 1]",
    }
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    engine = ["--engine", installed()[0]]
    assert call("train", "scratch", *given, *engine, "--dry-run") == 0
    assert program.name in capsys.readouterr().out.replace("\n", "")
    cache = tmp_path / "cache"
    assert call("teach", "scratch", *given, *engine, "--out", cache) == 0
    assert "1 views of 12 pictures" in capsys.readouterr().out
    assert call("teach", "scratch", *given, *engine, "--out", cache, "--verify", 6) == 0
    assert "answers computed again are the teacher's" in capsys.readouterr().out
    assert call("train", "scratch", *given, *engine, "--out", tmp_path / "live") == 0
    given += ["--set", f"distill.cache={cache}"]
    assert call("train", "scratch", *given, *engine, "--out", tmp_path / "cached") == 0
    capsys.readouterr()
    assert call("fit-head", program, tmp_path / "data", tmp_path / "taught.safetensors") == 2
    said = capsys.readouterr().err
    assert f"{program} is a program, whose last layer cannot be exchanged; give the weights" in said
