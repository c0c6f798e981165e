"""A made-up document of `evals collect`, for the tests of its page and for looking at it.

python -m tests.unit.evals.collect.page_document OUT.html [RUNS]
"""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path
from typing import Any

METHODS = {
    # name: adapter, most learned, most forgotten, best learning rate, width of its peak in factors of e
    "full finetuning": ("none", 0.13, 0.12, 1e-5, 0.9),
    "LoRA": ("lora", 0.10, 0.045, 1e-4, 1.3),
    "MonteCLoRA": ("monteclora", 0.10, 0.035, 1e-4, 2.6),
    "HiddenKey": ("lora", 0.10, 0.04, 1e-4, 1.6),
}
OLD = {"hellaswag": (0.776, 0.25), "arc_challenge": (0.51, 0.25), "winogrande": (0.727, 0.5)}
STATES = {7: "running", 17: "stale", 27: "failed", 37: "preempted"}


def make_document(count: int = 24, *, points: int = 5, loss_points: int = 40, seed: int = 0) -> dict[str, Any]:
    """`count` runs over methods, ranks, learning rates and seeds, with `points` evaluations each."""
    noise = random.Random(seed)
    runs = [_run(index, points, loss_points, noise) for index in range(count)]
    return {
        "schema": 1,
        "root": "/shared/study",
        "collected_at": "2026-01-02T03:04:05+00:00",
        "seconds": 1.2,
        "runs": runs,
        "skipped": [
            {"path": f"broken-{i}/run.json", "reason": "not JSON (line 1 column 1)"} for i in range(min(count, 3))
        ],
        "spreads": _spreads(runs),
        "pareto": _front(runs),
        "stages": [],
    }


def _run(index: int, points: int, loss_points: int, noise: random.Random) -> dict[str, Any]:
    method = list(METHODS)[index % 4]
    adapter, learns, forgets, best, width = METHODS[method]
    rank = None if adapter == "none" else (16, 64, 256)[index // 4 % 3]
    lr = best * (1.0, 0.3, 3.0, 10.0)[index // 12 % 4]
    seed = 1 + index // 48
    fit = math.exp(-0.5 * (math.log(lr / best) / width) ** 2) * (0.6 + 0.4 * math.log2((rank or 256) / 8) / 5)
    lost = min(0.25, forgets * (lr / best) ** 0.4)
    status = STATES.get(index % 40, "done")
    total = 400
    reached = total if status == "done" else total // 2
    steps = [round(total * i / max(points - 1, 1)) for i in range(points)]
    scored = [
        _point(step, learns * fit * (step / total) ** 0.6, lost * step / total, noise)
        for step in steps
        if step <= reached
    ]
    name = f"seed{seed}/{method.replace(' ', '-').lower()}{'' if rank is None else f'-r{rank}'}-lr{lr:.0e}-{index}"
    return {
        "id": name,
        "name": name,
        "method": method,
        "adapter": adapter,
        "rank": rank,
        "lr": lr,
        "seed": seed,
        "batch_rows": 192,
        "status": status,
        "base": "models/Llama-2-7b-hf",
        "base_fingerprint": "sha256:base",
        "step": reached,
        "steps": total,
        "tokens_seen": reached * 786_432,
        "tokens_per_epoch": 157_286_400,
        "trainable_parameters": 6_738_415_616 if rank is None else 2_498_560 * rank,
        "started_at": None,
        "updated_at": 1.0,
        "branch_from": None,
        "notes": ["says it is running, but nothing was written for 2 days"] if status == "stale" else [],
        "points": scored,
        "loss": [
            [
                reached * 786_432 * (i + 1) / loss_points,
                0.7 - learns * fit * (1 - math.exp(-i / 8)) + noise.gauss(0, 0.004),
            ]
            for i in range(loss_points)
        ],
        "rank_change": _rank(rank, noise) if index % 8 == 0 else None,
        "parent": None,
        "is_diverged": False,
        "is_continuation": False,
        "final": {key: value for key, value in scored[-1].items() if key not in ("tasks", "tokens", "epochs")},
    }


def estimate(value: float, stderr: float, unit: str = "accuracy") -> dict[str, Any]:
    return {
        "value": value,
        "stderr": stderr,
        "low": value - 1.96 * stderr,
        "high": value + 1.96 * stderr,
        "n": 200,
        "unit": unit,
    }


def _point(step: int, gained: float, lost: float, noise: random.Random) -> dict[str, Any]:
    off = (lambda scale: noise.gauss(0, scale)) if step else (lambda scale: 0.0)
    tasks: dict[str, Any] = {}
    for name, (start, chance) in OLD.items():
        score = start - lost + off(0.006)
        change = estimate(score - start, 0.01) if step else None
        tasks[name] = _task("old", "forgetting", score, 0.01, chance, change) | {"nll": 1.1 + lost, "ece": 0.05}
    score = 0.138 + gained + off(0.006)
    tasks["humaneval"] = _task(
        "new", "learning-code", score, 0.012, None, estimate(score - 0.138, 0.008) if step else None
    ) | {"pass_at_k": {"1": score, "10": score * 1.5}, "unique": {"all": 21.3, "passed": 2.0, "failed": 19.3}}
    kept = sum(tasks[name]["score"] for name in OLD) / 3
    return {
        "step": step,
        "tokens": step * 786_432,
        "epochs": step / 200,
        "learned": estimate(score - 0.138, 0.008) if step else None,
        "forgotten": estimate(0.671 - kept, 0.006) if step else None,
        "learning_score": score,
        "forgetting_average": kept,
        "over": ({"learned": ["humaneval"], "forgotten": list(OLD)} if step else {})
        | {"learning_score": ["humaneval"], "forgetting_average": list(OLD)},
        "tasks": tasks,
    }


def _task(
    domain: str, suite: str, score: float, stderr: float, chance: float | None, change: dict[str, Any] | None
) -> dict[str, Any]:
    return {
        "domain": domain,
        "suite": suite,
        "metric": "accuracy",
        "score": score,
        "stderr": stderr,
        "n": 200,
        "chance": chance,
        "change": change,
        "nll": None,
        "ece": None,
        "pass_at_k": None,
        "unique": None,
    }


def _rank(rank: int | None, noise: random.Random) -> dict[str, Any]:
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    width = [1400, 1300, 1700, 1700, 2300, 2400, 2500] if rank is None else [rank] * 7
    ranks = [
        [
            max(1, round(w * (0.6 + 0.3 * math.sin(math.pi * (layer + 0.5) / 32)) * noise.uniform(0.95, 1)))
            for w in width
        ]
        for layer in range(32)
    ]
    return {"share": 0.9, "step": 400, "modules": modules, "layers": list(range(32)), "rank": ranks, "max_rank": 4096}


def _spreads(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    spreads = []
    for method in METHODS:
        for metric, sign in (("learned", 1), ("forgotten", -1)):
            own = [r for r in runs if r["method"] == method and r["status"] == "done" and r["points"][-1][metric]]
            values = sorted((r["points"][-1][metric]["value"] for r in own), reverse=sign > 0)
            if values:
                spreads.append(
                    {
                        "method": method,
                        "metric": metric,
                        "unit": "accuracy",
                        "best": values[0],
                        "median": values[len(values) // 2],
                        "worst": values[-1],
                        "values": values,
                        "runs": [r["id"] for r in own],
                        "n": len(values),
                        "diverged": 0,
                    }
                )
    return spreads


def _front(runs: list[dict[str, Any]]) -> list[list[Any]]:
    items = [
        (p["learned"]["value"], p["forgotten"]["value"], r["id"], p["step"])
        for r in runs
        for p in r["points"]
        if p["learned"]
    ]
    return [
        [run, step]
        for learned, forgotten, run, step in items
        if not any(a >= learned and b <= forgotten and (a, b) != (learned, forgotten) for a, b, *_ in items)
    ]


if __name__ == "__main__":
    from evals.collect.page import render

    document = make_document(int(sys.argv[2]) if len(sys.argv) > 2 else 60, loss_points=200)
    Path(sys.argv[1]).write_text(render(document), encoding="utf-8")
