"""Searching for the fastest choices, keeping them, and what a processor gives without a search."""

import json
from dataclasses import replace

import numpy as np
import pytest

from xcite import processor
from xcite.choices import default_choices
from xcite.engines import create_engine
from xcite.processor import Processor, allowed
from xcite.tuning import profile, step
from xcite.tuning.knobs import NEVER, SLICES, Work, knobs
from xcite.tuning.search import search
from xcite.variants import find

ZEN3 = Processor("AMD EPYC 7R13", "AuthenticAMD", "25.1.1", frozenset({"avx2"}))
ZEN5 = Processor(
    "AMD EPYC", "AuthenticAMD", "26.2.1", frozenset({"avx2", "avx512bw", "avx512_bf16"})
)
XEON = Processor("Intel Xeon", "GenuineIntel", "6.85.7", frozenset({"avx2", "avx512bw"}))
WORK = Work(find("xcit_nano_12_p8"), "torch", 16, 224, 224, "float32")


def test_the_default_follows_the_instruction_set():
    assert default_choices("torch", ZEN5).products == "convolution"
    assert default_choices("torch", ZEN3).products == "matrix"  # 1.00 of timm's speed with oneDNN
    assert default_choices("torch", XEON).products == "matrix"  # Intel's MKL uses all of it
    compiled = {p: default_choices("torch", p).compiled for p in (ZEN3, XEON, ZEN5)}
    assert compiled == {ZEN3: True, XEON: False, ZEN5: False}
    assert all(default_choices("paddle", p).compiled for p in compiled)
    assert not default_choices("torch", ZEN3, compiled=False).compiled
    assert [p.instruction_set for p in (ZEN3, XEON, ZEN5)] == [
        "AVX2",
        "AVX-512",
        "AVX-512 and bf16",
    ]
    assert [p.native_bf16 for p in (ZEN3, XEON, ZEN5)] == [False, False, True]


def test_a_cap_hides_instructions(monkeypatch):
    flags = ["avx2", "avx512bw", "avx512_bf16", "sse"]
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert allowed(flags) == {"avx2", "avx512bw", "avx512_bf16"}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx512_core")
    assert allowed(flags) == {"avx2", "avx512bw"}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert allowed(flags) == {"avx2"}


class _Machine:
    """Times of a made-up machine: each choice costs its factor, and turns differ."""

    def __init__(self, noise=0.01, seed=0, **factors):
        self.factors, self.noise, self.now = factors, noise, 0.0
        self.draws = np.random.default_rng(seed)

    def exact(self, choices):
        seconds = 0.5
        for knob, costs in self.factors.items():
            seconds *= costs.get(getattr(choices, knob), 1.0)
        return seconds

    def timed(self, choices):
        seconds = self.exact(choices) * (1 + abs(self.draws.normal(0, self.noise)))
        self.now += seconds
        return seconds

    def search(self, start, limit=60.0):
        return search(start, knobs(WORK), self.timed, limit=limit, clock=lambda: self.now)


START = default_choices("torch", ZEN5)


@pytest.mark.parametrize("seed", range(5))
def test_a_search_finds_the_fastest(seed):
    machine = _Machine(
        seed=seed,
        products={"convolution": 1.6},
        slice_bytes={SLICES[1]: 0.9, SLICES[-1]: 1.2},
        covariance_above={NEVER: 1.5, 0.0: 1.0},
    )
    found = machine.search(START)
    assert found.choices.products == "matrix"
    assert found.choices.slice_bytes == SLICES[1]
    assert found.choices.covariance_above == START.covariance_above  # no gain, so as it was
    assert 1.5 < found.before / found.after < 2.1
    assert machine.now < 60


@pytest.mark.parametrize("seed", range(5))
def test_noise_changes_nothing(seed):
    found = _Machine(noise=0.03, seed=seed).search(START)
    assert found.choices == START
    assert found.before == found.after


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("limit", [1.0, 10.0])
def test_a_search_ends_in_time_and_never_with_something_slower(seed, limit):
    machine = _Machine(noise=0.3, seed=seed, slice_bytes={SLICES[2]: 0.9, SLICES[0]: 3.0})
    found = machine.search(START, limit)
    assert found.after <= found.before
    # what was begun is finished: a turn of all values of a knob, and the comparison at the end
    assert machine.now < limit + (len(SLICES) + 7) * 3.0


def test_what_was_found_is_looked_up_on_this_machine_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine = _Machine(products={"convolution": 1.6})
    assert profile.look_up(WORK) is None
    found = machine.search(START)
    profile.keep(WORK, found)
    assert profile.look_up(WORK) == found.choices
    assert profile.look_up(Work(WORK.architecture, "torch", 8, 224, 224, "float32")) is None
    assert profile.look_up(replace(WORK, attention="usual")) is None
    profile.keep(WORK, machine.search(found.choices))  # in its place
    assert len(profile.entries()) == 1
    told = json.loads(profile.profile_file().read_text())
    assert told["machine"]["processor"] == processor.this_processor().name

    monkeypatch.setattr(profile, "this_processor", lambda: ZEN3)
    assert profile.look_up(WORK) is None
    profile.keep(WORK, found)
    assert len(list((tmp_path / "xcite" / "profiles").iterdir())) == 2


def test_a_form_of_attention_that_is_asked_for_is_the_one_that_is_timed(monkeypatch):
    assert "covariance_above" in knobs(WORK)
    asked = replace(WORK, attention="usual", height=32, width=32, batch=1)
    assert "covariance_above" not in knobs(asked)
    built = []

    def create(*arguments, **options):
        built.append(options["attention"])
        return create_engine(*arguments, **options)

    monkeypatch.setattr(step, "create_engine", create)
    timed = step.Timed(asked)
    assert timed(timed.choices) > 0
    assert built == ["usual"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"machine": {}}', '{"machine": 1, "entries": [{}]}']
)
def test_a_damaged_profile_is_none(monkeypatch, tmp_path, text):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    profile.profile_file().parent.mkdir(parents=True)
    profile.profile_file().write_text(text)
    assert profile.entries() == []


def test_a_wrong_choice_in_a_profile_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    profile.keep(WORK, _Machine().search(START))
    path = profile.profile_file()
    path.write_text(path.read_text().replace('"products": "convolution"', '"products": "magic"'))
    assert profile.look_up(WORK) is None


def test_a_user_without_a_cache_is_served_too(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (None, tmp_path / "file"):
        monkeypatch.setattr(profile, "user_cache", lambda name, place=place: place)
        profile.keep(WORK, _Machine().search(START))
        assert profile.look_up(WORK) is None
