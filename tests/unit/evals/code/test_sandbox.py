from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evals.code import exchange, sandbox
from evals.code.judge import judge
from evals.code.policy import Policy
from evals.code.program import Program
from evals.code.sandbox import Sandbox, check
from evals.errors import EvalError

PROGRAM = Program(id="p", sample=0, source="def f(): return 1", test="assert f() == 1", entry_point="f")


@pytest.fixture
def helper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What helper processes send in place of the real ones: a list for each, of one message at the start, then one for
    each program."""
    messages: list[Any] = []
    code = "import sys, os\nfor line in open(sys.argv[1]):\n    os.write(1, bytes.fromhex(line))\n    sys.stdin.buffer.read(1)\n"
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        path = str(tmp_path / "messages")
        read, write = os.pipe()
        with open(path, "w") as file:
            for message in messages.pop(0):
                exchange.send(write, json.dumps(message).encode())
                file.write(os.read(read, 65536).hex() + "\n")
        os.close(read)
        os.close(write)
        return popen([sys.executable, "-c", code, path], **options)

    monkeypatch.setattr(sandbox.subprocess, "Popen", start)
    return messages


def test_a_refusal_names_the_step_and_the_ways_out(helper: list[Any]) -> None:
    helper.append([{"refusal": "making a user namespace: Operation not permitted"}])
    with pytest.raises(EvalError) as caught:
        check(Policy())
    message = str(caught.value)
    for part in (
        "making a user namespace: Operation not permitted",
        "max_user_namespaces",
        "allow_unisolated",
        "SYS_ADMIN",
    ):
        assert part in message


def test_a_user_who_insists_is_told(helper: list[Any]) -> None:
    passed = {"passed": True, "reason": "passed", "seconds": 0.1, "detail": ""}
    helper += [[{"refusal": "making x"}], [{"refusal": ""}, passed]]
    assert check(Policy(allow_unisolated=True)) == "programs run without isolation: making x"


def test_where_programs_are_isolated_there_is_nothing_to_say(helper: list[Any]) -> None:
    helper.append([{"refusal": ""}, {"passed": True, "reason": "passed", "seconds": 0.1, "detail": ""}])
    assert check(Policy(allow_unisolated=True)) == ""


def test_a_place_that_cannot_be_made_for_a_program_is_an_error(helper: list[Any]) -> None:
    helper.append([{"refusal": ""}, {"broken": "mounting /scratch: No space left on device"}])
    with Sandbox(Policy()) as each, pytest.raises(EvalError, match=r"cannot be isolated .*mounting /scratch: No space"):
        each.run(PROGRAM)


def test_a_helper_that_ends_is_an_error(helper: list[Any]) -> None:
    helper += [[], [{"refusal": ""}]]
    with pytest.raises(EvalError, match="the sandbox's helper process ended"):
        check(Policy())
    with Sandbox(Policy()) as each, pytest.raises(EvalError, match="the sandbox's helper process ended"):
        each.run(PROGRAM)


def test_limits_under_which_nothing_passes_are_an_error(helper: list[Any]) -> None:
    failed = {"passed": False, "reason": "out of memory", "seconds": 0.1, "detail": "MemoryError"}
    helper.append([{"refusal": ""}, failed])
    with pytest.raises(
        EvalError, match=r"the verdict 'out of memory' \(MemoryError\).*raise the limits: .*memory_bytes=9,"
    ):
        check(Policy(memory_bytes=9))


@pytest.mark.parametrize("error", [BlockingIOError(11, "Resource temporarily unavailable"), OSError(12, "no memory")])
def test_a_machine_that_can_start_no_process_is_an_error(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(sandbox.subprocess, "Popen", fail)
    for start in (lambda: check(Policy()), lambda: judge([PROGRAM], policy=Policy())):
        with pytest.raises(EvalError, match=rf"no process to judge programs in .*{error.strerror}.*ulimit -u"):
            start()


def test_a_shortage_is_no_missing_permission(helper: list[Any]) -> None:
    # A user who insists does not ask for a lack of isolation that only a shortage causes.
    helper.append([{"refusal": "forking: out of memory", "is_shortage": True}])
    with pytest.raises(EvalError, match=r"no process to judge programs in .*forking: out of memory"):
        check(Policy(allow_unisolated=True))
    helper.append([{"refusal": ""}, {"broken": "forking: too many", "is_shortage": True}])
    with pytest.raises(EvalError, match=r"no process to judge programs in .*forking: too many"):
        check(Policy())
