from __future__ import annotations

import threading
from dataclasses import replace
from types import TracebackType

import pytest

from evals.code import judge as judging
from evals.code.judge import judge
from evals.code.policy import Policy
from evals.code.program import Program, Verdict
from evals.errors import EvalError


class Sandbox:
    """Passes programs whose source says so, and notes what it was asked."""

    asked: list[str]
    open: int
    most_open: int

    def __init__(self, policy: Policy) -> None:
        type(self).open += 1
        type(self).most_open = max(self.open, self.most_open)
        self.is_busy = threading.Lock()

    def run(self, program: Program) -> Verdict:
        assert self.is_busy.acquire(blocking=False), "two programs in one sandbox"
        self.asked.append(program.source)
        if program.source == "broken":
            raise EvalError("the sandbox's helper process ended")
        self.is_busy.release()
        return Verdict(passed=program.source.startswith("good"), reason=program.source, seconds=0.0)

    def end(self) -> None: ...

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        type(self).open -= 1


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> type[Sandbox]:
    fresh = type("Sandbox", (Sandbox,), {"asked": [], "open": 0, "most_open": 0})
    monkeypatch.setattr(judging, "Sandbox", fresh)
    return fresh


def program(source: str, sample: int = 0) -> Program:
    return Program(id="p", sample=sample, source=source, test="t", entry_point="f")


def test_order_is_kept_and_equal_programs_are_judged_once(sandbox: type[Sandbox]) -> None:
    sources = ["good 1", "bad", "good 2", "good 1", "bad"] * 20
    finished: list[tuple[str, Verdict]] = []
    thread = threading.get_ident()

    def note(each: Program, verdict: Verdict) -> None:
        assert threading.get_ident() == thread
        finished.append((each.source, verdict))

    programs = [program(source, sample) for sample, source in enumerate(sources)]
    verdicts = judge(programs, policy=Policy(), workers=2, finished=note)
    assert [verdict.reason for verdict in verdicts] == sources
    assert sorted(sandbox.asked) == ["bad", "good 1", "good 2"]
    assert sorted(source for source, _ in finished) == ["bad", "good 1", "good 2"]
    assert (sandbox.open, sandbox.most_open) == (0, 2)


def test_known_verdicts_are_not_asked_again(sandbox: type[Sandbox]) -> None:
    policy = Policy()
    known: dict[str, Verdict] = {}

    def keep(each: Program, verdict: Verdict) -> None:
        known[each.key(policy)] = verdict

    programs = [program("good"), program("bad"), program("broken")]
    with pytest.raises(EvalError, match="helper process ended"):
        judge(programs, policy=policy, workers=1, finished=keep)
    assert len(known) == 2
    assert sandbox.open == 0
    repaired = [*programs[:2], replace(programs[2], source="good now")]
    verdicts = judge(repaired, policy=policy, workers=1, known=known, finished=keep)
    assert [verdict.passed for verdict in verdicts] == [True, False, True]
    assert sandbox.asked == ["good", "bad", "broken", "good now"]
    assert [verdict.passed for verdict in judge(repaired, policy=policy, known=known)] == [True, False, True]
    assert len(sandbox.asked) == 4
    assert sandbox.most_open == 1  # none for programs that are all known


def test_another_policy_is_another_verdict(sandbox: type[Sandbox]) -> None:
    known = {program("good").key(Policy()): Verdict(passed=False, reason="timed out", seconds=10.0)}
    assert not judge([program("good")], policy=Policy(), known=known)[0].passed
    assert judge([program("good")], policy=Policy(wall_seconds=20), known=known)[0].passed


def test_nothing_to_judge(sandbox: type[Sandbox]) -> None:
    assert judge([], policy=Policy()) == []
    assert sandbox.most_open == 0


def test_threads_that_cannot_be_started_are_an_error(sandbox: type[Sandbox], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(EvalError, match=r"no process to judge programs in .*can't start new thread"):
        judge([program("good")], policy=Policy())
    assert sandbox.open == 0
