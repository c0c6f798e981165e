from __future__ import annotations

import re

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from training.ranks.verdict import (
    Kind,
    Report,
    Verdict,
    cause_of,
    decide,
    hang_report,
    in_words,
    is_echo,
    is_settled,
    name_ranks,
    place,
    report_of,
    where,
)

GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:51374: Connection reset by peer. "
    "This is typically caused by a remote worker hanging"
)


def report(kind: Kind, rank: int = 1, text: str = "boom", type_name: str = "") -> Report:
    return Report(rank=rank, kind=kind, text=text, type_name=type_name, exit_code=1)


def verdict(*reports: Report, places: dict[int, str] | None = None) -> Verdict:
    return decide(reports, places=places or {}, hosts={1: "node7", 3: "node8"}, stacks="run/logs")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(GLOO),
        RuntimeError("NCCL communicator was aborted on rank 1."),
        RuntimeError("Broken pipe"),
        dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:2223, remote process exited"),
        dist.DistNetworkError("The client socket has timed out"),
        dist.DistStoreError("wait timeout after 1000ms"),
    ],
)
def test_what_a_lost_peer_causes_is_an_echo(error: BaseException) -> None:
    assert is_echo(error)
    assert report_of(error, rank=0, is_user_error=False, exit_code=1).kind == "echo"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("boom"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("CUDA out of memory"),
        # Of storage, or of a monitor.
        ConnectionResetError(104, "Connection reset by peer"),
        BrokenPipeError(32, "Broken pipe"),
        KeyboardInterrupt("a second Ctrl-C: what came after the last checkpoint is not saved"),
    ],
)
def test_other_errors_are_causes(error: BaseException) -> None:
    assert not is_echo(error)
    assert report_of(error, rank=0, is_user_error=False, exit_code=1).kind == "error"


def test_a_user_error_is_its_message() -> None:
    found = report_of(ValueError("lower optim.lr"), rank=2, is_user_error=True, exit_code=2)
    assert (found.kind, found.error, found.exit_code) == ("user error", "ValueError: lower optim.lr", 2)
    assert len(report_of(ValueError("x" * 10**6), rank=2, is_user_error=True, exit_code=2).text) == 20_000
    assert report_of(KeyError(), rank=0, is_user_error=False, exit_code=1).error == "KeyError"


KINDS: tuple[Kind, ...] = ("user error", "error", "death", "hang", "echo", "stop")
ORDER = [{"user error", "error"}, {"death"}, {"hang"}, {"echo"}, {"stop"}]


@given(kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=6))
def test_an_error_before_a_death_before_a_hang_before_an_echo_and_among_equals_the_first(kinds: list[Kind]) -> None:
    reports = [report(kind, rank) for rank, kind in enumerate(kinds)]
    best = next(group for group in ORDER if group & set(kinds))
    first = next(rank for rank, kind in enumerate(kinds) if kind in best)
    assert cause_of(reports) is reports[first]


@pytest.mark.parametrize(
    ("kinds", "seconds", "is_over"),
    [
        ([], 100, False), (["error"], 0.5, False), (["error"], 1.1, True), (["echo", "death"], 1.1, True),
        (["echo"], 1.1, False), (["echo", "echo"], 6.1, True), (["hang"], 0, True), (["stop"], 0.5, False),
    ],
)  # fmt: skip
def test_a_better_cause_is_waited_for(kinds: list[Kind], seconds: float, is_over: bool) -> None:
    assert is_settled([report(kind) for kind in kinds], {5}, seconds) == is_over


def test_when_all_have_reported_nothing_is_waited_for() -> None:
    assert is_settled([report("echo"), report("death")], set(), 0.0)
    assert not is_settled([], set(), 100.0)


def test_an_error_of_another_rank_has_its_number() -> None:
    found = verdict(report("echo", 0, GLOO, "RuntimeError"), report("error", 3, "boom", "ValueError"))
    assert found == Verdict(
        kind="error", rank=3, text="rank 3: ValueError: boom", error="rank 3: ValueError: boom", exit_code=1
    )


def test_a_user_error_is_said_without_its_type() -> None:
    found = verdict(report("user error", 3, "lower optim.lr", "ModelError"))
    assert (found.text, found.error) == ("rank 3: lower optim.lr", "rank 3: ModelError: lower optim.lr")


def test_what_rank_0_says_too_is_everybodys() -> None:
    found = verdict(*(report("user error", rank, "lower optim.lr", "ModelError") for rank in (2, 0, 1)))
    assert (found.rank, found.text, found.error) == (0, "lower optim.lr", "ModelError: lower optim.lr")
    other = verdict(report("user error", 2, "of rank 2"), report("user error", 0, "of rank 0"))
    assert (other.rank, other.text) == (2, "rank 2: of rank 2")


def test_the_exit_code_is_that_of_the_cause() -> None:
    wrong = Report(rank=1, kind="user error", text="x", exit_code=2)
    assert verdict(report("echo", 0), wrong).exit_code == 2
    stop = Report(rank=1, kind="stop", text="SIGTERM", exit_code=85)
    assert verdict(stop).exit_code == 85
    assert verdict(stop, report("death", 0)).exit_code == 1


def test_a_stop_before_training() -> None:
    found = verdict(Report(rank=1, kind="stop", text="SIGUSR1", exit_code=85), report("stop", 0, "SIGTERM"))
    assert found.text == "stopped by SIGUSR1 during start-up, nothing was lost; start it again to continue"
    assert found.error == "SIGUSR1", "what run.json says of it"


@pytest.mark.parametrize(
    ("places", "rest"),
    [
        ({}, ""),
        ({0: 'in "step 9: update"', 1: 'in "step 9: data"'}, '; rank 0 was in "step 9: update"'),
        ({0: 'in "saving step 8"', 2: 'in "saving step 8"'}, '; the other ranks were in "saving step 8"'),
        (
            {0: 'in "start-up"', 2: 'in "step 1: data"', 3: 'in "start-up"'},
            '; where the others were: ranks 0, 3 in "start-up", rank 2 in "step 1: data"',
        ),
    ],
)
def test_a_death_says_who_and_where_the_others_were(places: dict[int, str], rest: str) -> None:
    found = verdict(report("death", 1, "died without a word"), places=places)
    assert found.text == f"rank 1 on node7 died without a word{rest}; stacks are in run/logs"
    assert found.error == found.text


def test_more_deaths_follow_the_first() -> None:
    found = verdict(
        report("death", 3, "died"), report("death", 1, "died"), report("death", 2, "died"), places={0: place("x")}
    )
    assert found.text == 'rank 3 on node8 died, ranks 1-2 after it; rank 0 was in "x"; stacks are in run/logs'
    assert verdict(report("death", 9, "died")).text.startswith("rank 9 on an unknown node died")


def test_only_echoes_name_the_first_of_them() -> None:
    found = verdict(report("echo", 3, GLOO, "RuntimeError"), report("echo", 0, "Broken pipe", "RuntimeError"))
    assert (found.kind, found.rank, found.text) == ("echo", 3, f"rank 3: RuntimeError: {GLOO}")


def test_a_hang_names_first_who_stood_still_first() -> None:
    places = {3: place("step 120: data"), **{rank: place("step 120: update") for rank in (0, 1, 2, 4)}}
    found = verdict(hang_report(3, 600, places))
    assert found.text == (
        'nothing has moved for 10 min: rank 3 is in "step 120: data", ranks 0-2, 4 in "step 120: update"; stacks are in run/logs'
    )
    assert hang_report(0, 90, {0: place("x"), 1: place("x")}).text == 'nothing has moved for 90 s: ranks 0-1 are in "x"'
    stopped = {1: place("x", is_silent=True), 0: place("y")}
    assert hang_report(1, 1, stopped).text == 'nothing has moved for 1 s: rank 1 is silent since "x", rank 0 in "y"'


def test_where_everybody_is() -> None:
    assert where({}) == ""
    assert where({2: place("a"), 0: place("b"), 1: place("a")}) == 'ranks 1-2 in "a", rank 0 in "b"'


@given(ranks=st.sets(st.integers(0, 40), min_size=1))
def test_ranks_in_words_are_those_ranks(ranks: set[int]) -> None:
    text = name_ranks(ranks)
    word, _, numbers = text.partition(" ")
    assert word == ("rank" if len(ranks) == 1 else "ranks")
    found: set[int] = set()
    for run in numbers.split(", "):
        first, _, last = run.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    assert found == ranks
    # Runs are as long as they can be.
    edges = [int(edge) for edge in re.findall(r"\d+", numbers)]
    assert edges == sorted(edges)
    assert numbers.count(",") + 1 == len([rank for rank in ranks if rank - 1 not in ranks])


@pytest.mark.parametrize(
    ("seconds", "words"), [(3, "3 s"), (90, "90 s"), (600, "10 min"), (7200, "2 h"), (0.5, "0.5 s")]
)
def test_a_time_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
