"""Synthetic documents and run folders."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals.results import write_result

LOSSES = {
    # adapter kind: (bits per byte saved on new text, lost on old text), then the same in questions of 100
    "none": (0.60, 0.30, 14, 9),
    "lora": (0.50, 0.08, 12, 3),
    "monteclora": (0.49, 0.07, 12, 2),
}


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write texts as a JSONL file of documents d0, d1, ..."""

    def write(texts: list[str], name: str = "heldout.jsonl") -> Path:
        path = tmp_path / name
        lines = [json.dumps({"id": f"d{index}", "text": text}) for index, text in enumerate(texts)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def task_result(metric: str, domain: str, values: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """A task's result from per-example bits (bits_per_byte) or credits (accuracy)."""
    bits = metric == "bits_per_byte"
    examples = [
        {"id": f"d{i}", "nll": float(v) * math.log(2), "bytes": int(w)}
        if bits
        else {"id": f"d{i}", "correct": float(v)}
        for i, (v, w) in enumerate(zip(values, weights, strict=True))
    ]
    return {
        "kind": metric if bits else "continuation_choice",
        "domain": domain,
        "metric": metric,
        "higher_is_better": not bits,
        "score": float(values.sum() / weights.sum()),
        "n": len(values),
        "stderr": 0.01,
        "chance": None if bits else 0.25,
        "fingerprint": "sha256:0",
        "examples": examples,
    }


def results(saved_new: float, lost_old: float, more_new: int, fewer_old: int, *, seed: int) -> dict[str, Any]:
    """Results of four tasks on 100 examples each, from fixed examples plus a change with some noise."""
    examples, noise = np.random.default_rng(0), np.random.default_rng(seed)
    tasks = {}
    for name, domain, change in (("code", "new", -saved_new), ("prose", "old", lost_old)):
        weights = examples.integers(500, 4000, 100)
        rates = examples.uniform(1.5, 3.0, 100) + change * noise.uniform(0.5, 1.5, 100)
        tasks[name] = task_result("bits_per_byte", domain, rates * weights, weights)
    for name, domain, change in (("code_choice", "new", more_new), ("prose_choice", "old", -fewer_old)):
        credits_ = np.zeros(100)
        credits_[: 60 + change] = 1
        tasks[name] = task_result("accuracy", domain, credits_, np.ones(100))
        losses = np.where(credits_ == 1, 0.3, 1.9) + noise.uniform(-0.2, 0.2, 100)
        for record, loss in zip(tasks[name]["examples"], losses, strict=True):
            record["nll"] = float(loss)
        tasks[name] |= {"nll": float(losses.mean()), "ece": 0.05 + (0.02 if change else 0)}
    return tasks


def posterior(task: dict[str, Any]) -> dict[str, Any]:
    """What eight draws of the weights might add to a task's result."""
    if task["metric"] == "bits_per_byte":
        return {"samples": 8, "score": task["score"] - 0.001}
    return {
        "samples": 8,
        "score": task["score"] + 0.01,
        "nll": task["nll"] - 0.02,
        "ece": task["ece"] - 0.015,
        "mutual_information": 0.0123,
    }


@pytest.fixture
def make_run() -> Callable[..., Path]:
    """Write a run's folder as training does; keyword arguments override keys of run.json."""

    def write(root: Path, name: str, kind: str = "none", *, base: str | None = "base/export", **overrides: Any) -> Path:
        run = root / name
        run.mkdir(parents=True)
        trainable = {"none": 2_600_000, "lora": 130_000, "monteclora": 133_000}[kind]
        record = {
            "schema": 1,
            "status": "done",
            "config": {
                "adapter": {"kind": kind, "rank": 16},
                "model": {"base": base},
                "run": {"seed": 17},
            },
            "versions": {"python": "3.11.7", "torch": "2.13.0"},
            "world": {"size": 2},
            "parameters": {"total": 2_600_000 + (0 if kind == "none" else trainable), "trainable": trainable},
            "step": 100,
            "steps": 100,
            "tokens_seen": 409_600,
            "seconds": 61.5,
            "base_fingerprint": None if base is None else "sha256:base",
            "an unknown key": 1,
        }
        (run / "run.json").write_text(json.dumps(record | overrides))
        curve = [
            {"step": s, "tokens_seen": 4096 * s, "loss": 2.0 + 3.0 * math.exp(-s / 30), "data_hash": f"hash{s}"}
            for s in range(1, 101)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in curve))
        write_result(run, step=0, tasks=results(0, 0, 0, 0, seed=0), seconds=1.0)
        final = results(*LOSSES[kind], seed=1)
        if kind == "monteclora":
            final = {name: task | {"posterior": posterior(task)} for name, task in final.items()}
        write_result(run, step=100, tasks=final, seconds=1.0)
        return run

    return write


@pytest.fixture
def study(tmp_path: Path, make_run: Callable[..., Path]) -> Path:
    """A base run and one run per method."""
    root = tmp_path / "study"
    make_run(root, "base", base=None)
    for kind in LOSSES:
        make_run(root, kind, kind)
    return root
