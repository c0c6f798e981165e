"""What starts ranks for tests: a forked rank is as good as a launched one, and none outlives who started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import ROOT, RanksFailed, base_environment, end, run_ranks, start, start_program

pytestmark = [pytest.mark.dist, pytest.mark.skipif(sys.platform != "linux", reason="ranks are forked on Linux only")]

HERE = "tests.distributed.test_ranks"


def look(variable: str) -> dict[str, Any]:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE")
    return {
        "variable": os.environ.get(variable),
        "place": [os.environ[name] for name in names],
        "threads": len(os.listdir("/proc/self/task")),
        "leads_a_group": os.getpgid(0) == os.getpid(),
    }


def sleep(folder: str) -> None:
    Path(folder, f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    time.sleep(600)


def sleep_or_fail(folder: str) -> None:
    if os.environ["RANK"] == "0":
        sleep(folder)
    wait_until(Path(folder, "0.pid").exists)
    raise ValueError("no luck")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_rank_has_the_environment_of_its_start(fresh: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SET_LATER", "one")
    first, second = run_ranks(f"{HERE}:look", 2, local_size=1, fresh=fresh, variable="SET_LATER")
    # The second thread is that of faulthandler's timeout.
    assert first == {"variable": "one", "place": ["0", "0", "2", "1"], "threads": 2, "leads_a_group": True}
    assert second == {**first, "place": ["1", "0", "2", "1"]}
    monkeypatch.delenv("SET_LATER")
    (alone,) = run_ranks(f"{HERE}:look", 1, fresh=fresh, variable="SET_LATER")
    assert alone == {**first, "variable": None, "place": ["0", "0", "1", "1"]}


@pytest.mark.parametrize("fresh", [False, True])
def test_a_rank_that_fails_ends_the_others(fresh: bool, tmp_path: Path) -> None:
    with pytest.raises(RanksFailed, match=r"(?s)on 2 ranks: rank 1 ended with code 1\n.*rank 1\nTraceback.*no luck"):
        run_ranks(f"{HERE}:sleep_or_fail", 2, fresh=fresh, folder=str(tmp_path))
    assert not is_alive(int((tmp_path / "0.pid").read_text()))


def test_a_rank_that_hangs_shows_where(tmp_path: Path) -> None:
    with pytest.raises(RanksFailed, match=r"(?s)no end after 4 s; stacks below\n.*Current thread .* in sleep\n"):
        run_ranks(f"{HERE}:sleep", 1, timeout=4, folder=str(tmp_path))
    assert not is_alive(int((tmp_path / "0.pid").read_text()))


def test_ranks_end_with_who_started_them(tmp_path: Path) -> None:
    code = f"from tests.ranks import run_ranks; run_ranks('{HERE}:sleep', 2, folder={str(tmp_path)!r})"
    user = subprocess.Popen([sys.executable, "-c", code], env=base_environment(), cwd=ROOT)
    files = [tmp_path / f"{rank}.pid" for rank in (0, 1)]
    wait_until(lambda: all(file.exists() and file.read_text() for file in files), 120)
    user.kill()
    user.wait()
    wait_until(lambda: not any(is_alive(int(file.read_text())) for file in files))


def test_signals_and_codes(tmp_path: Path) -> None:
    environment = base_environment() | {"RANK": "0"}
    rank = start(f"{HERE}:sleep", {"folder": str(tmp_path)}, environment=environment, output=tmp_path / "log")
    wait_until((tmp_path / "0.pid").exists)
    assert rank.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        rank.wait(0.1)
    rank.send_signal(signal.SIGTERM)
    assert rank.wait(60) == rank.poll() == rank.returncode == -signal.SIGTERM
    # Of a process that is gone.
    rank.kill()
    again = start(f"{HERE}:sleep", {"folder": str(tmp_path)}, environment=environment, output=tmp_path / "log")
    again.kill()
    assert again.wait(60) == -signal.SIGKILL


@pytest.mark.parametrize("fresh", [False, True])
def test_a_program_has_the_codes_and_words_of_a_launched_one(fresh: bool, tiny_recipe: Path, tmp_path: Path) -> None:
    arguments = ["--recipe", str(tiny_recipe), "--run.dir", str(tmp_path / "run"), "--train.placement", "replicated"]
    wrong = start_program([*arguments, "--optim.lrr", "1"], 1, folder=tmp_path, fresh=fresh)
    assert wrong[0].wait(120) == 2
    assert "--optim.lrr (command line): unknown setting" in wrong[0].output.read_text()

    metrics = tmp_path / "run" / "metrics.jsonl"
    ranks = start_program([*arguments, "--train.steps", "100000"], 2, folder=tmp_path, fresh=fresh)
    try:
        wait_until(lambda: metrics.exists() or any(rank.poll() is not None for rank in ranks), 120)
        for rank in ranks:
            rank.send_signal(signal.SIGTERM)
        assert [rank.wait(120) for rank in ranks] == [85, 85], ranks[0].output.read_text()
    finally:
        end(ranks)
    assert "everything saved" in ranks[0].output.read_text()
