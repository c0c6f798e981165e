from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from evals.code import keeper

ROOT = Path(__file__).parents[4]
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def proc(tmp_path: Path) -> Iterator[int]:
    """A /proc of the processes 10 (3 pages, threads 10 and 12, children 11 and 13), 11 (5 pages), and 13 (7 pages)."""
    for pid, pages, threads in ((10, 3, {10: "11 ", 12: "13 "}), (11, 5, {11: ""}), (13, 7, {13: ""})):
        for thread, children in threads.items():
            folder = tmp_path / f"{pid}/task/{thread}"
            folder.mkdir(parents=True)
            (folder / "children").write_text(children)
            (folder / "statm").write_text(f"100 {pages} 1 1 0 1 0\n")
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_memory_of_all_descendants(proc: int) -> None:
    assert keeper.resident(proc, 10) == 15 * PAGE
    assert keeper.resident(proc, 11) == 5 * PAGE
    assert keeper.resident(proc, 99) == 0


def test_a_thread_that_ends_hides_nothing_else(proc: int, tmp_path: Path) -> None:
    (tmp_path / "10/task/10/children").unlink()
    assert keeper.resident(proc, 10) == 10 * PAGE
    (tmp_path / "10/task/12/statm").unlink()
    assert keeper.resident(proc, 10) == 10 * PAGE


def test_a_first_thread_that_has_ended_hides_nothing(proc: int, tmp_path: Path) -> None:
    (tmp_path / "10/task/10/statm").write_text("0 0 0 0 0 0 0\n")
    assert keeper.resident(proc, 10) == 15 * PAGE


def test_a_child_that_ends_hides_nothing_else(proc: int, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "11")
    assert keeper.resident(proc, 10) == 10 * PAGE


FAULT = """
import json, os, sys
sys.path.append(sys.argv[1])
from evals.code import keeper
from evals.code.policy import Policy

def fail(*arguments):
    raise {error}

{what} = fail
place = keeper._Place(policy=Policy(wall_seconds=5), is_isolated=False, proc=os.open("/proc", os.O_PATH))
print(json.dumps(keeper._judge_next(place)))
"""


@pytest.mark.parametrize(
    ("what", "error", "is_shortage"),
    [
        ("keeper.privileges.hide_memory", "ValueError('a fault')", False),
        ("keeper.privileges.hide_memory", "OSError(12, 'a fault')", True),
        ("keeper._keep_open", "ValueError('a fault')", False),
        ("keeper.os.chdir", "PermissionError(13, 'a fault')", False),
        ("keeper.os.fork", "BlockingIOError(11, 'a fault')", True),
    ],
)
def test_a_place_that_cannot_be_made_is_reported(what: str, error: str, is_shortage: bool) -> None:
    program = json.dumps({"source": "def f(): return 1", "test": "assert f() == 1", "entry_point": "f"}).encode()
    done = subprocess.run(
        [sys.executable, "-c", FAULT.format(what=what, error=error), str(ROOT)],
        input=len(program).to_bytes(8, "little") + program,
        capture_output=True,
        check=True,
    )
    result = json.loads(done.stdout)
    assert "a fault" in result["broken"]
    assert result["is_shortage"] is is_shortage
