"""No part of a run tries the network where everything it names is local: what every Python process asks for is recorded.

An audit hook sees Python's own calls. Where the kernel allows it the processes also have no network but loopback, so that a native
library that needs one fails.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ranks import ROOT, base_environment, free_port
from tests.suite_data import make_suite_data

pytestmark = pytest.mark.dist

RECORDER = '''
"""Append what this process asks of the network to a file; run by Python before everything else."""
import os, sys, traceback

EVENTS = {"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1, "socket.getaddrinfo": 0, "socket.gethostbyname": 0,
          "socket.gethostbyaddr": 0, "socket.getnameinfo": 0}

def is_local(target):
    if isinstance(target, tuple):
        if target[:2] == ("192.0.2.1", 9):  # training.world.own_address: no packet is sent
            return True
        target = target[0]
    if isinstance(target, bytes):
        target = target.decode("utf-8", "replace")
    if target is None or target in ("", "localhost", "::1", "0.0.0.0", "::") or target.startswith(("127.", "/", "\\0")):
        return True
    return False

def record(event, arguments):
    if event in EVENTS and not is_local(arguments[EVENTS[event]]):
        stack = "".join(traceback.format_stack(limit=12)[:-1])
        line = f"{event} {arguments[EVENTS[event]]!r}\\n{sys.argv}\\n{stack}\\n"
        file = os.open(os.environ["NETWORK_RECORD"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, line.encode())
        os.close(file)

sys.addaudithook(record)
file = os.open(os.environ["NETWORK_RECORD"] + ".watched", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.write(file, f"{os.getpid()}\\n".encode())
os.close(file)
'''

WITHOUT_NETWORK = """
import fcntl, os, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Runs a command in a new network namespace, where loopback is down at first."""


def namespace() -> list[str]:
    """What to put before a command that shall have no network; nothing where that isn't allowed."""
    prefix = ["unshare", "--net", "--map-root-user", sys.executable, "-S", "-c", WITHOUT_NETWORK]
    if shutil.which("unshare") is None:
        return []
    done = subprocess.run([*prefix, "true"], capture_output=True, timeout=60, check=False)
    return prefix if done.returncode == 0 else []


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def watched(tmp_path: Path) -> Run:
    """Runs `python` with arguments, and fails where it fails or asked for anything but this machine."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(RECORDER)
    found = tmp_path / "network"
    environment = base_environment()
    # Nobody has told the libraries to stay offline.
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        environment.pop(name, None)
    environment.update(
        PYTHONPATH=f"{site}{os.pathsep}{ROOT}", NETWORK_RECORD=str(found), HF_HOME=str(tmp_path / "hugging-face")
    )
    prefix = namespace()

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [*prefix, sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert not found.exists(), found.read_text()
        assert found.with_name("network.watched").exists(), "the recorder didn't run"
        return done

    return run


def test_the_recorder_sees_a_request(watched: Run) -> None:
    asks = "import socket\ntry: socket.create_connection(('huggingface.co', 443), 1)\nexcept OSError: pass"
    with pytest.raises(AssertionError, match=r"huggingface\.co"):
        watched("-c", asks)


def test_importing_asks_for_nothing(watched: Run) -> None:
    """Every module of every package, and with them all libraries."""
    folders = ("launch", "training", "monteclora", "data_pipeline", "evals")
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.stem != "__main__"
    ]
    watched("-c", f"import importlib\nfor name in {names!r}: importlib.import_module(name)")


def test_a_run_with_all_that_follows_it(watched: Run, tiny_recipe: Path, tmp_path: Path) -> None:
    data, out = make_suite_data(tmp_path / "data", examples=4), tmp_path / "run"
    settings = ["--train.steps", "2", "--optim.warmup_steps", "1", "--checkpoint.every_steps", "1", "--adapter.kind", "lora",
                "--run.dir", str(out), "--eval.suites", "forgetting@2", "--eval.data_dir", str(data)]  # fmt: skip
    watched("-m", "data_pipeline", "index", tiny_recipe)
    watched("-m", "data_pipeline", "stats", tiny_recipe)
    watched("-m", "launch", "plan", tiny_recipe, "--gpu", "H100", "--nodes", "1")
    watched("-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--master_port", str(free_port()), "training/main.py",
            "--ds_config", "ds_configs/zero3_cpu.json", "--recipe", tiny_recipe, *settings)  # fmt: skip
    assert json.loads((out / "run.json").read_text())["status"] == "done"
    assert "arc_challenge@2" in json.loads((out / "evals" / "2.json").read_text())["tasks"]
    watched("-m", "training.checkpoint", "export", out, "--out", tmp_path / "merged", "--format", "merged")
    watched("-m", "training.checkpoint", "rank", out)
    watched(
        "-m", "evals", "run", tmp_path / "merged", "--suite", "forgetting", "--run", out, "--step", "2", "--data", data
    )
    watched("-m", "evals", "report", out)
    watched("-m", "evals", "collect", out)
    assert not any(path.is_file() for path in (tmp_path / "hugging-face").rglob("*")), "something of the hub was kept"
