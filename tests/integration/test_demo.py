"""The demo's story from corpus to page, with a few steps per run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import ROOT, base_environment

pytestmark = pytest.mark.dist

SHORT = ["--train.steps", "12", "--optim.warmup_steps", "2", "--checkpoint.every_steps", "6", "--data.seq_len", "128",
         "--eval.tasks.prose.max_document_bytes", "2000", "--eval.tasks.code.max_document_bytes", "2000"]  # fmt: skip


def demo(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch", "demo", "--out", str(out), *SHORT, *more]
    return subprocess.run(
        command, cwd=ROOT, env=base_environment(), capture_output=True, text=True, timeout=500, check=False
    )


def test_the_story(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = demo(out)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((out / "report" / "report.json").read_text())
    assert set(report["methods"]) == {"none", "lora", "monteclora"}
    assert report["same_batches"] is True
    assert report["same_base"] is True
    for name, method in report["methods"].items():
        assert (
            method["trainable_parameters"]
            == json.loads((out / name / "run.json").read_text())["parameters"]["trainable"]
        )
        assert (out / method["run"]).is_dir()
        assert method["seconds"] > 0
        for quantity in ("learned", "forgotten"):
            assert method[quantity]["n"] > 20
            assert method[quantity]["stderr"] > 0
    full = report["methods"]["none"]
    assert full["learned"]["value"] > 2 * full["learned"]["stderr"], "full finetuning learns the new domain"
    page = (out / "report" / "index.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert str(out / "report" / "index.html") in done.stdout.replace("\n", "")

    collected = json.loads((out / "collected" / "collected.json").read_text())
    by_name = {run["id"]: run for run in collected["runs"]}
    assert set(by_name) == {"base", "none", "lora", "monteclora"}
    assert collected["skipped"] == []
    for name in report["methods"]:
        assert [point["step"] for point in by_name[name]["points"]] == [0, 12]
        ranks = [rank for layer in by_name[name]["rank_change"]["rank"] for rank in layer if rank is not None]
        assert 1 <= max(ranks) <= (16 if name != "none" else 192)
    assert "<script" in (out / "collected" / "index.html").read_text()

    # The methods differ in adapter.* only.
    configs = [json.loads((out / name / "run.json").read_text())["config"] for name in report["methods"]]
    for config in configs:
        del config["adapter"]["kind"], config["run"]["dir"]
    assert configs[0] == configs[1] == configs[2]

    again = demo(out)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("done already") == 7

    other = demo(out, "--optim.lr", "5e-4")
    assert other.returncode == 2
    assert "belongs to a different recipe" in other.stderr
    assert "make demo-clean" in other.stderr
