"""Run folders of a made-up sweep whose truth is known: what each method learns and forgets, and how noisy that is."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

BUDGETS = (4, 8, 16, 32)
"""Steps; a step is 1,000 tokens."""
RATES = (1e-4, 3e-4, 1e-3)
SEEDS = (1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Method:
    """Truth about a method.

    Attributes:
        kind: of the adapter.
        rank: of the adapter.
        learned: bits per byte, at the best learning rate and the largest budget.
        forgotten: likewise.
        best: learning rate.
        width: of the peak over learning rates, in factors of e.
        decay: weight decay.
        attention_dropout: rate of dropout on attention weights.
        noise_scale: of MonteCLoRA.
        hidden_key: settings of HiddenKey.
        diverges_at: learning rates at which runs diverge.
        k: rank of the weight change at the end; 0: not measured.
    """

    kind: str = "none"
    rank: int = 16
    learned: float = 0.5
    forgotten: float = 0.3
    best: float = 3e-4
    width: float = 2.0
    decay: float = 0.01
    attention_dropout: float | None = None
    noise_scale: float = 2.5e-5
    hidden_key: dict[str, Any] = field(default_factory=dict)
    diverges_at: tuple[float, ...] = ()
    k: int = 0


HIDDEN_KEY = {"enabled": True, "key_rate": 0.1, "hidden_rate": 0.1, "compensation": "kl", "compensation_weight": 1.0}
STUDY = {
    "full": Method(learned=0.6, forgotten=0.4, k=50),
    "full_wd": Method(learned=0.58, forgotten=0.37, decay=0.5),
    "full_dropout": Method(learned=0.57, forgotten=0.36, attention_dropout=0.1),
    "lora_r4": Method(kind="lora", rank=4, learned=0.4, forgotten=0.08, best=1e-3, width=1.2),
    "lora_r16": Method(kind="lora", rank=16, learned=0.45, forgotten=0.12, best=1e-3, width=1.2),
    "hidden_key": Method(kind="lora", rank=16, learned=0.52, forgotten=0.1, best=1e-3, hidden_key=HIDDEN_KEY),
    "monteclora": Method(kind="monteclora", rank=16, learned=0.45, forgotten=0.12, best=1e-3, width=5.0),
}


def make_study(
    root: Path,
    methods: dict[str, Method],
    *,
    source: str = "code",
    source_kind: str = "text",
    rates: Sequence[float] = RATES,
    seeds: Sequence[int] = SEEDS,
    budgets: Sequence[int] = BUDGETS,
    documents: int = 40,
    seed_noise: float = 0.004,
    noise: int = 0,
) -> Path:
    """Write a run for every method, learning rate and seed."""
    for name, method in methods.items():
        for lr in rates:
            for seed in seeds:
                run = root / f"{source}-{name}-lr{lr:g}-seed{seed}"
                make_run(run, method, lr=lr, seed=seed, source=source, source_kind=source_kind, budgets=budgets,
                         documents=documents, seed_noise=seed_noise, noise=noise)  # fmt: skip
    return root


def make_run(
    run: Path,
    method: Method,
    *,
    lr: float,
    seed: int,
    source: str = "code",
    source_kind: str = "text",
    budgets: Sequence[int] = BUDGETS,
    documents: int = 40,
    seed_noise: float = 0.004,
    noise: int = 0,
    **overrides: Any,
) -> Path:
    """Write a run; what all methods have in common of a seed cancels in paired differences."""
    is_diverged = lr in method.diverges_at
    own = np.random.default_rng([noise, seed, round(lr * 1e7), len(run.name), *run.name.encode()])
    common = np.random.default_rng([noise, seed]).normal(0, 3 * seed_noise, 2)
    shift = common + own.normal(0, seed_noise, 2)
    fit = math.exp(-0.5 * (math.log(lr / method.best) / method.width) ** 2)
    (run / "evals").mkdir(parents=True)
    kept = budgets[: len(budgets) // 2] if is_diverged else budgets
    for step in (0, *kept):
        part = (step / budgets[-1]) ** 0.5
        effect = (np.array([method.learned * fit, method.forgotten]) + shift) * part
        tasks = {
            f"{source}_text": _bits("new", -effect[0], documents, own if step else None),
            "prose": _bits("old", effect[1], documents, own if step else None),
        }
        (run / "evals" / f"{step}.json").write_text(
            json.dumps({"schema": 1, "step": step, "seconds": 1.0, "tasks": tasks})
        )
    last = max(kept, default=0)
    losses: list[float | None] = [3.0 - method.learned * step / budgets[-1] for step in range(1, last + 1)]
    losses += [None] if is_diverged else []
    lines = [{"step": step, "tokens_seen": 1000 * step, "loss": loss} for step, loss in enumerate(losses, start=1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "run.json").write_text(
        json.dumps(record(method, lr, seed, source, source_kind, last, is_diverged) | overrides)
    )
    if method.k:
        _write_rank(run, method.k, kept)
    return run


def record(
    method: Method, lr: float, seed: int, source: str, source_kind: str, step: int, is_diverged: bool
) -> dict[str, Any]:
    trainable = 1_000_000 if method.kind == "none" else 5_000 * method.rank
    return {
        "schema": 1,
        "status": "failed" if is_diverged else "done",
        "error": "NonFiniteGradients: the loss is not a number" if is_diverged else None,
        "config": {
            "run": {"dir": f"/somewhere/{source}", "seed": seed, "branch_from": None},
            "model": {"base": "/somewhere/tiny_base/export", "attention_dropout": method.attention_dropout},
            "adapter": {
                "kind": method.kind,
                "rank": method.rank,
                "alpha": 2.0 * method.rank,
                "noise_scale": method.noise_scale,
                "init_from": None,
            },
            "hidden_key": method.hidden_key or {"enabled": False},
            "data": {
                "seq_len": 100,
                "sources": {source: {"path": f"/somewhere/{source}/train.jsonl", "kind": source_kind}},
            },
            "train": {"global_batch_rows": 10, "steps": 32},
            "optim": {"lr": lr, "weight_decay": method.decay, "kind": "adamw", "schedule": "cosine"},
        },
        "base_fingerprint": "sha256:base",
        "git": {"commit": "0123456789abcdef0123", "changed_files": 0},
        "parameters": {"total": 1_000_000, "trainable": trainable},
        "step": step,
        "steps": 32,
        "tokens_seen": 1000 * step,
        "seconds": 60.0,
    }


def _bits(domain: str, change: float, documents: int, noise: np.random.Generator | None) -> dict[str, Any]:
    fixed = np.random.default_rng(len(domain) + 7)
    sizes, rates = fixed.integers(500, 3000, documents), fixed.uniform(1.5, 3.0, documents)
    factors = fixed.uniform(0.6, 1.4, documents)
    factors *= sizes.sum() / (factors * sizes).sum()
    rates = rates + change * factors
    if noise is not None:
        rates = rates + noise.normal(0, 0.01, documents)
    nll = rates * sizes * math.log(2)
    return {
        "kind": "bits_per_byte", "domain": domain, "metric": "bits_per_byte", "higher_is_better": False,
        "score": float((rates * sizes).sum() / sizes.sum()), "n": documents, "stderr": 0.01, "chance": None,
        "fingerprint": f"sha256:{domain}",
        "examples": [{"id": f"d{i}", "nll": float(a), "bytes": int(b)} for i, (a, b) in enumerate(zip(nll, sizes, strict=True))],
    }  # fmt: skip


def _write_rank(run: Path, k: int, steps: Sequence[int]) -> None:
    (run / "weights").mkdir()
    for place, step in enumerate(steps):
        ranks = [
            [max(1, k - 2 * (len(steps) - 1 - place) + layer + column) for column in range(2)] for layer in range(3)
        ]
        content = {
            "schema": 1, "step": step, "share": 0.9, "before": "base", "after": "run", "modules": ["q_proj", "up_proj"],
            "layers": [0, 1, 2], "rank": ranks, "full_rank": [[192, 192]] * 3, "max_rank": 192, "relative_change": [[0.1, 0.1]] * 3,
        }  # fmt: skip
        (run / "weights" / f"rank-{step}.json").write_text(json.dumps(content))
