"""Helper processes: from any program, and what comes of errors, deaths and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.processes import Advance, run_in_processes
from data_pipeline.sources.errors import DataError

ROOT = Path(__file__).resolve().parents[3]
PROC = Path("/proc/self/fd")


class OddError(Exception):
    """Cannot be pickled as it is."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


class PanicError(BaseException):
    """Like a panic of a native library: no Exception."""


def begin(tell: Advance, run: Callable[..., Any], *arguments: Any) -> Callable[[Any], Any]:
    return lambda job: run(job, *arguments)


def begin_badly(tell: Advance) -> Callable[[int], int]:
    print("no such thing", file=sys.stderr)
    os._exit(3)


def begin_telling(tell: Advance) -> Callable[[int], None]:
    return tell


def add(job: int, value: int) -> int:
    return job + value


def add_soon(job: int, folder: Path) -> None:
    if job == 0:
        raise DataError("the first")
    time.sleep(0.3)
    (folder / str(job)).touch()


def fail(job: str) -> None:
    if job == "odd":
        raise OddError(1, 2)
    if job == "panic":
        raise PanicError("index out of bounds")
    if job == "exit":
        sys.exit(4)
    raise DataError(f"{job} cannot be done")


def die(job: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def heed_no_signal(job: int) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(os.getpid(), number)
    return job


def pid_and_wait(job: int, folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(60)


def run(function: Callable[..., Any], jobs: Any, *arguments: Any, workers: int = 2) -> dict[int, Any]:
    return dict(run_in_processes(begin, (function, *arguments), jobs, workers=workers, doing="count"))


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    def children() -> set[str]:
        return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())

    if not PROC.exists():
        yield
        return
    before, descriptors = children(), len(list(PROC.iterdir()))
    yield
    assert children() <= before
    assert len(list(PROC.iterdir())) <= descriptors


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_every_result_comes_once(workers: int) -> None:
    assert run(add, range(5), 10, workers=workers) == {number: number + 10 for number in range(5)}


def test_no_jobs() -> None:
    assert run(add, [], 10) == {}


def test_what_was_read_is_told() -> None:
    told: list[int] = []
    list(run_in_processes(begin_telling, (), [5, 7, 11], workers=2, doing="count", advance=told.append))
    assert sum(told) == 23


def test_errors_come_as_they_are_with_the_traceback_of_the_helper() -> None:
    with pytest.raises(DataError, match="job 7 cannot be done") as caught:
        run(fail, ["job 7"])
    assert "in fail" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("job", "message"),
    [("odd", "OddError: 1 and 2"), ("panic", "PanicError: index out of bounds"), ("exit", "SystemExit: 4")],
)
def test_errors_that_cannot_be_sent_come_as_text(job: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message) as caught:
        run(fail, [job])
    assert "in fail" in str(caught.value.__cause__)


def test_what_has_begun_is_finished_and_nothing_else_is_begun(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the first"):
        run(add_soon, range(5), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_killed_process_is_an_error() -> None:
    message = r"the process \d+ on .*, one of those that count, was killed by SIGKILL \(if nobody .* out of memory\)"
    with pytest.raises(
        DataError, match=message + r"; start again, perhaps with fewer workers: what was finished is kept$"
    ):
        run(die, [1, 2])


def test_the_end_of_a_process_is_an_error_with_what_it_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"ended with code 3; .*\. It printed last:\nno such thing$"):
        list(run_in_processes(begin_badly, (), [1], workers=1, doing="count"))
    assert capfd.readouterr().err == "no such thing\n"


def test_signals_to_the_job_do_not_end_a_helper() -> None:
    assert run(heed_no_signal, [1], workers=1) == {0: 1}


def test_helpers_end_with_the_callers_interest(tmp_path: Path) -> None:
    results = run_in_processes(begin, (add, 1), range(9), workers=2, doing="count")
    next(results)
    results.close()  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="pickle"):
        run(add, [lambda: None], 1)


PROGRAM = """
from pathlib import Path
from data_pipeline.processes import run_in_processes
from tests.unit.data_pipeline.test_processes import add, begin, pid_and_wait
jobs = {"add": (add, 10), "wait": (pid_and_wait, Path("."))}
print(sorted(run_in_processes(begin, jobs["WHAT"], range(3), workers=2, doing="count")))
"""


@pytest.mark.parametrize("how", ["stdin", "-c", "script"])
def test_helpers_start_from_anywhere(how: str, tmp_path: Path) -> None:
    program = PROGRAM.replace("WHAT", "add")
    (tmp_path / "script.py").write_text(program)
    arguments = {"stdin": ["-"], "-c": ["-c", program], "script": ["script.py"]}[how]
    done = subprocess.run(
        [sys.executable, *arguments],
        input=program if how == "stdin" else "",
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("[(0, 10), (1, 11), (2, 12)]\n", "")


@pytest.mark.skipif(not PROC.exists(), reason="this system has no /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_helpers_end_when_the_program_ends(number: signal.Signals, tmp_path: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("WHAT", "wait")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    until(lambda: len(list(tmp_path.iterdir())) == 2)
    pids = [int(path.name) for path in tmp_path.iterdir()]
    program.send_signal(number)
    program.wait(20)
    until(lambda: not any(map(is_alive, pids)))
