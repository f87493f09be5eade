"""Which process of how many: what launchers say, and what they say wrongly."""

import os

import pytest

from xcite.errors import XciteError
from xcite.processes.environment import Place, is_launched, place, settle
from xcite.processes.lost import lost
from xcite.processes.order import can_host, parse_hosts, parse_rendezvous

MEETING = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
TORCH = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", **MEETING}
PADDLE = {
    "PADDLE_TRAINER_ID": "5",
    "PADDLE_TRAINERS_NUM": "8",
    "PADDLE_LOCAL_RANK": "1",
    "PADDLE_LOCAL_SIZE": "4",
    "PADDLE_MASTER": "node1:29500",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    **MEETING,
}
SIXTH = Place(5, 8, 1, 4, "node1:29500")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No launcher's variables; what the test sets, or lets be set, is taken back."""
    for name in os.environ:
        if name.startswith(("SLURM_", "PADDLE_", "TORCHELASTIC_")) or name in TORCH:
            monkeypatch.delenv(name)
    for name in (*TORCH, *PADDLE, "PADDLE_CURRENT_ENDPOINT", "FLAGS_selected_gpus"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("engine", "variables", "expected"),
    [
        ("torch", {}, Place()),
        ("paddle", {}, Place()),
        ("torch", TORCH, SIXTH),
        ("paddle", PADDLE, SIXTH),
        ("torch", PADDLE, Place()),  # a teacher on the other engine is one process
        ("paddle", TORCH, Place()),
        ("torch", {"RANK": "0", "WORLD_SIZE": "1"}, Place()),
        ("torch", {"RANK": "3", "WORLD_SIZE": "4", **MEETING}, Place(3, 4, 0, 1, "node1:29500")),
        ("torch", {**TORCH, "LOCAL_RANK": ""}, SIXTH),
        (
            "paddle",
            {**PADDLE, "PADDLE_MASTER": "", "PADDLE_TRAINER_ENDPOINTS": "a:1,b:2"},
            Place(5, 8, 1, 4, "a:1"),
        ),
        ("paddle", {**PADDLE, **MEETING, "PADDLE_MASTER": "x:1"}, SIXTH),
        ("torch", SLURM, Place()),  # `settle` alone looks at srun
    ],
)
def test_places(engine: str, variables: dict[str, str], expected: Place) -> None:
    assert place(engine, variables) == expected


@pytest.mark.parametrize(
    ("engine", "variables", "message"),
    [
        ("torch", {"WORLD_SIZE": "2"}, "RANK is missing"),
        ("torch", {"RANK": "0"}, "WORLD_SIZE is missing"),
        ("torch", {"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT missing"),
        ("torch", {**TORCH, "MASTER_PORT": "no"}, "has no port number"),
        ("torch", {**TORCH, "RANK": "8"}, "RANK is 8, but WORLD_SIZE only 8"),
        ("torch", {**TORCH, "RANK": "-1"}, "RANK is '-1', no whole number"),
        ("torch", {**TORCH, "WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', no whole number"),
        ("torch", {**TORCH, "WORLD_SIZE": "0", "RANK": "0"}, "from 1 on"),
        ("torch", {**TORCH, "LOCAL_RANK": "4"}, "LOCAL_RANK is 4, LOCAL_WORLD_SIZE 4"),
        ("torch", {**TORCH, "LOCAL_WORLD_SIZE": "9"}, "contradict each other"),
        ("paddle", {"PADDLE_TRAINERS_NUM": "2"}, "PADDLE_TRAINER_ID is missing"),
        ("paddle", {**PADDLE, "PADDLE_MASTER": ""}, "PADDLE_MASTER is missing"),
        ("paddle", {**PADDLE, "PADDLE_TRAINER_ID": "9"}, "PADDLE_TRAINER_ID is 9"),
    ],
)
def test_what_is_wrong_is_said(engine: str, variables: dict[str, str], message: str) -> None:
    with pytest.raises(XciteError, match=message.replace("(", r"\(")) as caught:
        place(engine, variables)
    assert "xcite train ... --processes N" in str(caught.value)


@pytest.mark.parametrize("engine", ["torch", "paddle"])
def test_tasks_of_srun_are_settled(engine: str, environment: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        environment.setenv(name, value)
    assert settle(engine) == SIXTH
    assert place(engine) == SIXTH
    other = {"torch": "paddle", "paddle": "torch"}[engine]
    assert place(other) == Place()  # so a teacher on the other engine does not wait for seven more
    if engine == "paddle":
        assert os.environ["PADDLE_CURRENT_ENDPOINT"].endswith(":29502")
    assert settle(engine) == SIXTH  # a second run of the same process


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_NTASKS": "8", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0"},  # a batch script
        {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # srun --pty bash
        {"SLURM_JOB_ID": "7", "SLURM_NNODES": "4"},  # salloc
    ],
)
def test_one_process_within_an_allocation(
    variables: dict[str, str], environment: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    assert settle("torch") == settle("paddle") == Place()


def test_uneven_nodes(environment: pytest.MonkeyPatch) -> None:
    uneven = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "3(x2),2", "SLURM_NODEID": "2"}
    for name, value in {**uneven, "SLURM_PROCID": "7"}.items():
        environment.setenv(name, value)
    assert settle("torch") == Place(7, 8, 1, 2, "node1:29500")


def test_srun_without_a_meeting_point(environment: pytest.MonkeyPatch) -> None:
    for name in set(SLURM) - set(MEETING):
        environment.setenv(name, SLURM[name])
    with pytest.raises(XciteError, match="do not know where to meet; before srun, type: export"):
        settle("torch")


@pytest.mark.parametrize(
    ("engine", "variables", "launcher"),
    [("paddle", TORCH, "torchrun"), ("torch", PADDLE, r"paddle\.distributed\.launch")],
)
def test_the_other_frameworks_launcher(
    engine: str, variables: dict[str, str], launcher: str, environment: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    assert is_launched()
    with pytest.raises(XciteError, match=f"{launcher} started this process .* engine is {engine}"):
        settle(engine)


@pytest.mark.parametrize("text", ["", "0", "a", "2:", "3:2", "-1", "1:2:3"])
def test_no_number_of_hosts(text: str) -> None:
    with pytest.raises(XciteError, match="a range, 2:4"):
        parse_hosts(text)


def test_hosts_and_rendezvous() -> None:
    assert parse_hosts("4") == (4, 4)
    assert parse_hosts(" 2:4") == (2, 4)
    assert parse_rendezvous("127.0.0.1:29400") == ("127.0.0.1", 29400)
    assert not can_host("192.0.2.1", 0)  # an address for documentation, nobody's
    for text in ("here", ":1", "node1:", "node1:0", "node1:99999"):
        with pytest.raises(XciteError, match="give HOST:PORT"):
            parse_rendezvous(text)


@pytest.mark.parametrize(
    ("error", "is_loss"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]"), True),
        (RuntimeError("Timed out waiting 1800000ms for recv operation to complete"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (XciteError("Connection closed by peer"), False),
        (ValueError("timeout"), False),
    ],
)
def test_what_means_that_a_process_is_gone(error: Exception, is_loss: bool) -> None:
    said = lost(error)
    assert (said is not None) == is_loss
    if said:
        assert "another process of this run has ended or cannot be reached" in str(said)
        assert ";" not in str(said)  # parts of a message end there
