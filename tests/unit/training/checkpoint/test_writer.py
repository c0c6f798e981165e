"""The writing process: what it answers, and that it ends with its rank and with nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.ranks import ROOT
from tests.unit.training.checkpoint.checking import verify
from training.checkpoint.image import ShardImage
from training.checkpoint.writer import BackgroundWriter, DirectWriter, Writer

CONTENT = {
    "step": 4, "progress": {}, "world_size": 1, "optimizer_steps": {}, "parameters": {"w": [3]}, "states": {"w": []},
    "fingerprints": {}, "config": {}, "stream": {},
}  # fmt: skip


@pytest.fixture(params=["background", "direct"])
def writer(request: pytest.FixtureRequest) -> Iterator[Writer]:
    made: Writer = (
        BackgroundWriter(ShardImage({"w": 3}, torch.device("cpu")))
        if request.param == "background"
        else DirectWriter({"w": 3})
    )
    yield made
    made.close()


def answer(writer: Writer) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while (found := writer.answer()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_a_checkpoint(writer: Writer, tmp_path: Path) -> None:
    folder = tmp_path / ".4.a1.unfinished"
    writer.take([("w", torch.arange(3.0))])
    writer.ask(do="write", path=str(folder / "rank-00000-of-00001.safetensors"), read_back=True)
    entry = answer(writer)["value"]
    content = {**CONTENT, "files": [entry]}
    writer.ask(do="commit", folder=str(folder), final=str(tmp_path / "4"), content=content, superfluous=[2])
    assert answer(writer) == {"value": []}
    assert load_file(verify(tmp_path / "4").path / entry["name"])["w"].tolist() == [0, 1, 2]


def test_what_storage_refuses_is_an_answer(writer: Writer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    writer.take([("w", torch.arange(3.0))])
    writer.ask(do="write", path=str(tmp_path / "file" / "below"), read_back=True)
    assert answer(writer) == {"error": f"{tmp_path / 'file'}: File exists"}
    # Nobody waits for this one, and the next answer is the next request's.
    writer.ask(do="discard", folder=str(tmp_path / "none"))
    writer.take([("w", torch.arange(3.0))])
    writer.ask(do="write", path=str(tmp_path / "good"), read_back=False)
    assert answer(writer)["value"]["name"] == "good"


def test_a_write_that_finds_no_room_names_its_file(writer: Writer, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").symlink_to("/dev/full")
    writer.take([("w", torch.arange(3.0))])
    writer.ask(do="write", path=str(tmp_path / "full" / "file"), read_back=False)
    assert answer(writer) == {"error": f"{tmp_path / 'full' / 'file'}: No space left on device"}


def test_a_request_nobody_knows_is_an_error_and_not_an_end() -> None:
    writer = BackgroundWriter(ShardImage({"w": 3}, torch.device("cpu")))
    writer.ask(do="dance")
    assert answer(writer) == {"error": "ValueError: unknown request dance"}
    writer.close()


RANK = """
import os, sys, time, torch
from training.checkpoint.image import ShardImage
from training.checkpoint.writer import BackgroundWriter
writer = BackgroundWriter(ShardImage({"w": 3}, torch.device("cpu")))
writer.ask(do="discard", folder="/nonexistent")
writer.ask(do="dance")
while writer.answer() is None:
    time.sleep(0.01)
print(writer._process.pid, flush=True)
time.sleep(600)
"""


def test_it_ends_with_its_rank_but_not_with_signals_for_the_run() -> None:
    rank = subprocess.Popen([sys.executable, "-c", RANK], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert rank.stdout is not None
    pid = int(rank.stdout.readline())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(pid, number)
    status = Path(f"/proc/{pid}/stat")
    time.sleep(0.3)
    assert status.read_text().split()[2] in "SR", "a stop request is for the rank to heed"
    assert os.getpriority(os.PRIO_PROCESS, pid) == 19, "it takes what time is left"
    rank.kill()
    rank.wait()
    rank.stdout.close()
    deadline = time.monotonic() + 20
    while status.exists() and status.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the writer outlived its rank"
        time.sleep(0.02)


def test_a_process_whose_rank_is_gone_already_does_nothing(tmp_path: Path) -> None:
    request = json.dumps({"do": "write", "path": str(tmp_path / "file"), "read_back": False})
    with (tmp_path / "memory").open("w+b") as memory:
        memory.write(b"x")
        memory.flush()
        done = subprocess.run(
            [sys.executable, "-m", "training.checkpoint.writer_process", str(memory.fileno()), "1"],
            cwd=ROOT, input=request, text=True, capture_output=True, timeout=60, pass_fds=(memory.fileno(),),
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")
    assert not (tmp_path / "file").exists()
