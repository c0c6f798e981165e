"""`python -m benchmarks`: what is run, kept, stopped and written, with small scripts in place of the benchmarks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import __main__ as runner
from benchmarks import peers
from benchmarks.claims import ROOT
from benchmarks.suite import SCRIPTS, Script

RESULT: dict[str, Any] = {"claims": [], "commit": "abc", "is_tree_clean": True}
WRITES = f"import json, sys; json.dump({RESULT!r}, open(sys.argv[2], 'w'))"
Command = Callable[[Script], list[str]]


def code(text: str) -> Command:
    """Instead of a benchmark; its arguments are --json PATH."""
    return lambda script: ["python", "-c", text]


def script(minutes: float = 1.0) -> Script:
    return Script(name="packing", minutes=minutes)


def test_a_result_is_kept(tmp_path: Path) -> None:
    assert runner.run(script(), tmp_path / "a.json", code(WRITES)) is None
    assert json.loads((tmp_path / "a.json").read_text()) == RESULT


@pytest.mark.parametrize(
    ("text", "why", "err"),
    [
        ("raise SystemExit(3)", "exit code 3", ""),
        ("raise SystemExit('first\\nno such wheel\\n')", "exit code 1: no such wheel", "first\nno such wheel\n\n"),
        ("pass", "wrote no result", ""),
    ],
)
def test_why_there_is_no_result(
    tmp_path: Path, text: str, why: str, err: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runner.run(script(), tmp_path / "a.json", code(text)) == why
    assert not (tmp_path / "a.json").exists()
    assert capsys.readouterr().err == err


STAYS = """
import os, subprocess, sys, tempfile, time
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
open(os.environ["PIDS"], "w").write(f"{os.getpid()} {other.pid}")
with tempfile.TemporaryDirectory() as folder:
    open(os.environ["PIDS"] + ".new", "w").write(folder)
    os.rename(os.environ["PIDS"] + ".new", os.environ["PIDS"] + ".folder")
    time.sleep(60)
"""


def test_a_script_that_takes_too_long_is_stopped_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impatient(subprocess.Popen[bytes]):
        """Finds that the script's time is over as soon as the script has started everything."""

        def wait(self, timeout: float | None = None) -> int:
            if timeout == 4 * 60:
                while not (tmp_path / "pids.folder").exists():
                    time.sleep(0.05)
                raise subprocess.TimeoutExpired(self.args, timeout)
            return super().wait(timeout)

    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    monkeypatch.setattr(runner.subprocess, "Popen", Impatient)
    why = runner.run(script(minutes=2.0), tmp_path / "a.json", code(STAYS))
    assert why == "took longer than 4 minutes"
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert not any(_is_alive(pid) for pid in pids)
    assert not Path((tmp_path / "pids.folder").read_text()).exists()


def _is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_what_a_script_leaves_running_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    assert runner.run(script(), tmp_path / "a.json", code(STAYS.split("with")[0] + WRITES)) is None
    assert not any(_is_alive(int(pid)) for pid in (tmp_path / "pids").read_text().split())


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The scripts that were run; one called collect fails."""
    names: list[str] = []

    def run(script: Script, file: Path) -> str | None:
        names.append(script.name)
        if script.name == "collect":
            return "exit code 1: no such thing"
        file.write_text(json.dumps(_complete(script)))
        return None

    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(runner, "commit", lambda: ("abc", True))
    monkeypatch.setattr(runner, "make_environments", lambda names, missing: None)
    return names


def _complete(script: Script, **more: Any) -> dict[str, Any]:
    machine = {"cpu": "Fast", "cpus": 2, "memory_gib": 8.0, "gpu": None, "system": "Linux", "python": "3.11"}
    return {
        "script": script.name, "size": "bench", "command": script.command(), "seconds": 5.0, "date": "2026-01-02",
        "commit": "abc", "is_tree_clean": True, "machine": machine, "versions": {}, "claims": [], **more,
    }  # fmt: skip


TWO = [each for each in SCRIPTS if each.name in ("packing", "collect")]


def test_a_failure_is_a_row_and_the_rest_goes_on(
    ran: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = sorted(TWO, key=lambda each: each.name)
    assert runner.run_all(order, tmp_path, tmp_path / "R.md", is_again=False) == 1
    assert ran == ["collect", "packing"]
    text = (tmp_path / "R.md").read_text()
    assert '### collect\n\nNot measured: exit code 1: no such thing. `make bench ONLY="collect"`\n' in text
    assert "### packing\n\n`python benchmarks/packing.py --bench`\n" in text
    assert capsys.readouterr().err.endswith("no new result: collect\n")


def test_without_real_data_it_is_said_which_ratios_are_others(
    ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "shared"
    for there in (False, True):
        monkeypatch.setattr(runner, "REAL_DATA", missing)
        runner.run_all(TWO, tmp_path, tmp_path / "R.md", is_again=False)
        said = f"{missing} is not there: other texts or another tokenizer, and so other ratios, for packing"
        assert (said in capsys.readouterr().err) is not there
        missing.mkdir(exist_ok=True)


def test_a_failure_leaves_the_last_result(ran: list[str], tmp_path: Path) -> None:
    (collect,) = (each for each in TWO if each.name == "collect")
    old = _complete(collect, commit="before", claims=[_claim("collect_1000_seconds")])
    (tmp_path / "collect.json").write_text(json.dumps(old))
    assert runner.run_all([collect], tmp_path, tmp_path / "R.md", is_again=False) == 1
    kept = json.loads((tmp_path / "collect.json").read_text())
    failure = kept.pop("failure")
    assert kept == old
    assert failure["why"] == "exit code 1: no such thing"
    assert failure["date"].endswith("+00:00")
    text = (tmp_path / "R.md").read_text()
    assert f"Measured at before. The last try, {failure['date'][:10]}, failed: exit code 1: no such thing\n" in text
    assert "| `collect_1000_seconds` | ≤ 10 | 5 |" in text


def _claim(name: str) -> dict[str, Any]:
    return {"claim": name, "ratio": 5.0, "goal": "<=10", "min": 5.0, "max": 5.0, "n": 1, "peer": "1 second"}


def test_what_was_measured_at_this_commit_is_not_measured_again(
    ran: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runner.run_all(TWO, tmp_path, tmp_path / "R.md", is_again=False)
    assert runner.run_all(TWO, tmp_path, tmp_path / "R.md", is_again=False) == 1
    assert ran == ["packing", "collect", "collect"]
    assert "packing: measured at this commit; --again repeats it" in capsys.readouterr().out
    runner.run_all(TWO[:1], tmp_path, tmp_path / "R.md", is_again=True)
    assert ran == ["packing", "collect", "collect", "packing"]


@pytest.mark.parametrize(
    ("result", "now", "expected"),
    [
        ({}, ("abc", True), True),
        ({}, ("other", True), False),
        ({}, ("abc", False), False),
        ({}, (None, None), False),
        ({"is_tree_clean": False}, ("abc", True), False),
        ({"command": ["python", "benchmarks/packing.py", "--quick"]}, ("abc", True), False),
        ({"failure": {"why": "took longer than 4 minutes", "date": "2026-01-03"}}, ("abc", True), False),
    ],
)
def test_what_counts_as_measured(
    tmp_path: Path, result: dict[str, Any], now: tuple[str | None, bool | None], expected: bool
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(_complete(TWO[0], **result)))
    assert runner.is_done(tmp_path / "a.json", TWO[0], now) is expected
    assert not runner.is_done(tmp_path / "none.json", TWO[0], now)


@pytest.mark.parametrize(
    ("name", "message"),
    [("gpu_step", "gpu_step: needs a GPU"), ("packaging", "packaging: there is no such benchmark; there are adapter_step, ")],
)  # fmt: skip
def test_names_that_can_not_be_run(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        runner.main([name])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_some_are_chosen_in_the_order_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(runner, "run_all", lambda chosen, *_, is_again: asked.append([c.name for c in chosen]) or 0)
    assert runner.main(["collect", "packing"]) == 0
    assert runner.main([]) == 0
    assert asked == [["packing", "collect"], [script.name for script in SCRIPTS]]


def test_the_table_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "RESULTS", tmp_path)
    monkeypatch.setattr(runner, "TABLE", tmp_path / "R.md")
    assert runner.main(["--table"]) == 0
    assert os.listdir(tmp_path) == ["R.md"]


def test_a_peer_that_can_not_be_installed_is_tried_once_and_its_scripts_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[str] = []
    ran: list[str] = []

    def installed(peer: peers.Peer, folder: Path) -> Path:
        tried.append(peer.label.split()[0])
        if peer is peers.PEERS["mosaicml"]:
            raise peers.PeerError("pip could not install it:\nno such wheel")
        return folder

    monkeypatch.setattr(peers, "installed", installed)
    monkeypatch.setattr(runner, "run", lambda script, file: ran.append(script.name) or "exit code 1")
    with_peers = [each for each in SCRIPTS if each.peers]
    assert runner.run_all(with_peers, tmp_path, tmp_path / "R.md", is_again=False) == 1
    assert tried == ["mosaicml-streaming", "datasets", "litdata", "datasets", "trl"]
    assert ran == ["packing"]
    why = json.loads((tmp_path / "data_resume.json").read_text())["failure"]["why"]
    assert why == "no mosaicml-streaming 0.13.0: no such wheel"
    assert "pip could not install it:\nno such wheel\n" in capsys.readouterr().err


def test_ctrl_c_ends_the_script_and_says_so(tmp_path: Path) -> None:
    """The runner in a process of its own, with a script in the place of the first benchmark."""
    start = (
        "import runpy, sys\n"
        "from benchmarks import suite\n"
        "suite.Script.command = lambda self: ['python', '-c', sys.stdin.read()]\n"
        "suite.SCRIPTS = suite.SCRIPTS[:1]\n"
        "from benchmarks import claims\n"
        "from pathlib import Path\n"
        f"claims.RESULTS, claims.TABLE = Path({str(tmp_path)!r}), Path({str(tmp_path / 'R.md')!r})\n"
        "sys.argv = ['benchmarks', '--again']\n"
        "runpy.run_module('benchmarks', run_name='__main__', alter_sys=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", start], cwd=ROOT, env=os.environ | {"PIDS": str(tmp_path / "pids")},
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(STAYS)
        process.stdin.close()
        while not (tmp_path / "pids.folder").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    assert not any(_is_alive(int(pid)) for pid in (tmp_path / "pids").read_text().split())
    assert not (tmp_path / "adapter_step.json").exists()
