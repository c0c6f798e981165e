"""The benchmark of checkpoints: what a claim compares, which disk it takes, whose memory is counted."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import checkpoint, peers
from benchmarks.checkpoint import FULL, Case, anonymous_bytes, file_system, slowdown, timing_claims

CONTENDERS = Path(__file__).resolve().parents[3] / "benchmarks" / "contenders"
MOUNTS = """\
/dev/vda / ext4 rw 0 0
proc /proc proc rw 0 0
tmpfs /tmp tmpfs rw 0 0
/dev/sdb /tmp/on\\040disk xfs rw 0 0
/dev/vda /srv ext4 rw 0 0
tmpfs /srv tmpfs rw 0 0
"""


def printed(stall: float, **more: Any) -> dict[str, Any]:
    return {
        "stall_seconds": [stall, stall, 9.0], "first_stall_seconds": 2 * stall, "busy_seconds": [], "quiet_seconds": [1.0],
        "resume_seconds": None, "load_seconds": 4.0, **more,
    }  # fmt: skip


def test_claims_compare_medians_of_a_round() -> None:
    ours = printed(
        0.1, busy_seconds=[1.2, 0.9, 1.02], quiet_seconds=[0.5, 1.0, 7.0], resume_seconds=3.0, load_seconds=1.0
    )
    found = timing_claims(
        FULL, 2, {"ours": [ours], "torch": [printed(2.0)], "deepspeed": [printed(4.0)], "async": [printed(0.2)]}
    )
    ratios = {line["claim"]: line["ratio"] for line in found}
    assert ratios == pytest.approx({
        "stall_over_torch_full_2ranks": 0.05, "stall_over_deepspeed_full_2ranks": 0.025, "stall_over_async_full_2ranks": 0.5,
        "first_stall_full_2ranks": 0.05, "slowdown_full_2ranks": 1.02, "resume_full_2ranks": 0.75,
        "resume_unverified_full_2ranks": 0.25,
    })  # fmt: skip


def test_ways_that_took_no_part_have_no_claims() -> None:
    found = timing_claims(FULL, 1, {"ours": [printed(0.1)], "torch": [printed(2.0)]})
    assert [line["claim"] for line in found] == ["stall_over_torch_full_1rank", "first_stall_full_1rank"]


def test_no_step_in_a_save_is_no_slow_down() -> None:
    assert slowdown(printed(1.0)) is None


@pytest.mark.parametrize(
    ("folder", "kind"),
    [("/home/x", "ext4"), ("/tmp/x", "tmpfs"), ("/tmp/on disk/x", "xfs"), ("/tmpfs", "ext4"), ("/srv", "tmpfs")],
)
def test_the_file_system_of_a_folder(folder: str, kind: str) -> None:
    assert file_system(Path(folder), MOUNTS) == kind


def test_a_disk_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["checkpoint.py", "--dir", "/srv"])
    monkeypatch.setattr(checkpoint.Path, "read_text", lambda self: MOUNTS)
    with pytest.raises(SystemExit):
        checkpoint.main()
    assert "--dir /srv: is tmpfs, which is memory; name a folder on a disk" in capsys.readouterr().err


HOLDS = "import sys; held = b'x' * (64 << 20); print('ready', flush=True); sys.stdin.read()"


def test_memory_of_a_process_and_of_what_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(CONTENDERS)
    saves = importlib.import_module("saves")
    try:
        with subprocess.Popen([sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            assert set(saves.family(os.getpid())) >= {os.getpid(), child.pid}
            assert 64 << 20 <= saves.proportional_bytes(child.pid) < 128 << 20
            assert 64 << 20 <= anonymous_bytes(Path(f"/proc/{child.pid}/status")) < 128 << 20
            assert child.stdin is not None
            child.stdin.close()
        assert saves.proportional_bytes(child.pid) == 0
        assert anonymous_bytes(Path(f"/proc/{child.pid}/status")) == 0
    finally:
        for name in ("saves", "steps", "ours_steps", "ways_to_save"):
            sys.modules.pop(name, None)


def test_the_highest_memory_of_its_own(tmp_path: Path) -> None:
    holds = HOLDS.replace("sys.stdin.read()", "import time; time.sleep(0.1)")
    assert checkpoint.peak_of([sys.executable, "-c", "import time; time.sleep(0.1)"]) < 64 << 20
    assert checkpoint.peak_of([sys.executable, "-c", holds]) > 64 << 20
    with pytest.raises(peers.PeerError, match="no such thing"):
        checkpoint.peak_of([sys.executable, "-c", "raise SystemExit('no such thing')"])


@pytest.mark.dist
def test_a_contender_saves_and_goes_back(tmp_path: Path) -> None:
    bench = checkpoint.Bench(tmp_path)
    found = bench.run("ours", Case(name="tiny", hidden=128, layers=1, rank=8, vocab=256), 1, 1)
    # Seven linear layers, 128 wide, but for the feed-forward's 320.
    trained = 8 * (4 * 256 + 3 * 448)
    assert found["state_bytes"] == 12 * trained
    assert 1 < found["bytes"] / found["state_bytes"] < 1.2
    assert len(found["stall_seconds"]) == len(found["write_seconds"]) == 1
    assert 0 < found["stall_seconds"][0] < found["write_seconds"][0]
    assert len(found["quiet_seconds"]) >= 3
    assert found["resume_seconds"] > 0
    assert found["load_seconds"] > 0
    assert not bench.place.exists()
