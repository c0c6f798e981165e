"""Run folders as a study leaves them on shared storage: a grid of methods, made up, with everything that goes wrong there.

The scores follow the published shape (LoRA Learns Less and Forgets Less, arXiv 2405.09673, tables S1, S2): full finetuning
learns and forgets most, low ranks least, and a learning rate far from the best costs both. Of 40 runs, one each is running,
dead, preempted, diverged, half-written, corrupt, of a newer or an unknown schema, without run.json, a branch of the run before it,
or a second stage that begins with that run's export.

    python benchmarks/synthetic_runs.py ROOT [--count 60] [--seed 0]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

STEPS = 400
ROWS, LENGTH = 192, 4096
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAYERS = 32
BASE = {"hellaswag": 0.776, "arc_challenge": 0.51, "winogrande": 0.727, "humaneval": 0.138, "gsm8k": 0.145}
OLD = ("hellaswag", "arc_challenge", "winogrande")
SUITES = {"humaneval": "learning-code", "gsm8k": "learning-math"}
CHANCE = {"hellaswag": 0.25, "arc_challenge": 0.25, "winogrande": 0.5}
METHODS = {
    # name: adapter, HiddenKey, best learning rate, width of its peak in factors of e
    "full": ("none", False, 1e-5, 0.9),
    "lora": ("lora", False, 1e-4, 1.3),
    "monteclora": ("monteclora", False, 1e-4, 2.6),
    "hiddenkey": ("lora", True, 1e-4, 1.6),
}
CAPACITY = {16: (0.05, 0.04), 64: (0.08, 0.048), 256: (0.11, 0.06), None: (0.135, 0.126)}
"""Rank -> (most that is learned, most that is forgotten); None is full finetuning."""
KINDS = {
    11: "running", 12: "dead", 13: "preempted", 14: "diverged", 21: "half-written", 22: "corrupt record",
    23: "newer schema", 24: "no record", 25: "unknown schema", 30: "branch", 32: "second stage",
}  # fmt: skip
"""What is particular about a run, by its number modulo 40."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run of the grid."""

    method: str
    rank: int | None
    lr: float
    batch_rows: int
    seed: int

    @property
    def name(self) -> str:
        """Folder of the run."""
        size = "" if self.rank is None else f"-r{self.rank}"
        return f"seed{self.seed}/{self.method}{size}-lr{self.lr:.0e}-b{self.batch_rows}"


def grid() -> Iterator[Recipe]:
    """The runs in the order in which they are made: small counts hold every method, large ones many seeds."""
    for seed in itertools.count(1):
        for rows, factor, rank, method in itertools.product((ROWS, 48), (1.0, 0.3, 3.0, 10.0), (16, 64, 256), METHODS):
            if method != "full":
                yield Recipe(method=method, rank=rank, lr=METHODS[method][2] * factor, batch_rows=rows, seed=seed)
            elif rank == 16:
                yield Recipe(method=method, rank=None, lr=METHODS[method][2] * factor, batch_rows=rows, seed=seed)


def make_runs(root: Path, count: int, seed: int = 0, *, examples: int = 200, points: int = 5) -> list[Path]:
    """Write `count` run folders and return them.

    Args:
        root: folder to write to.
        count: run folders.
        seed: of all that is random.
        examples: of each task of choices; HumanEval has its 164 at most.
        points: evaluations of each run, the one before training included.
    """
    made: list[Path] = []
    recipes = list(itertools.islice(grid(), count))
    for number, recipe in enumerate(recipes):
        kind = KINDS.get(number % 40, "")
        before = (made[-1], recipes[number - 1]) if kind in ("branch", "second stage") else None
        made.append(Path(root) / recipe.name)
        _write_run(made[-1], recipe, np.random.default_rng((seed, number)), kind, before, examples, points)
        if number % 8 == 0:
            _write_rank(made[-1], recipe, np.random.default_rng((seed, number, 1)))
    return made


def _write_run(
    run: Path,
    recipe: Recipe,
    noise: np.random.Generator,
    kind: str,
    before: tuple[Path, Recipe] | None,
    examples: int,
    points: int,
) -> None:
    steps = [round(STEPS * i / (points - 1)) for i in range(points)]
    if kind in ("running", "dead", "preempted", "diverged"):
        steps = steps[:-2]
    for folder in ("evals", "logs", f"checkpoints/{STEPS:06d}"):
        (run / folder).mkdir(parents=True, exist_ok=True)
    (run / f"checkpoints/{STEPS:06d}/MANIFEST.json").write_text("{}")
    (run / "metrics.jsonl").write_text(_metrics(recipe, steps[-1], noise, kind == "diverged"))
    if kind != "no record":
        (run / "run.json").write_text(_record(run, recipe, steps[-1], kind, None if before is None else before[0]))
    start = {name: (score, "old" if name in OLD else "new") for name, score in BASE.items() if name != "gsm8k"}
    if kind == "second stage" and before is not None:
        start = _taught(start, before[1], 1.0)
        start = {name: (score, "old") for name, (score, _) in start.items()} | {"gsm8k": (BASE["gsm8k"], "new")}
    for step in steps:
        text = _evaluation(_taught(start, recipe, step / STEPS), step, examples, noise)
        is_cut = kind == "half-written" and step == steps[-1]
        (run / "evals" / f"{step}.json").write_text(text[: len(text) // 2] if is_cut else text)
    if kind == "dead":
        long_ago = time.time() - 2 * 86400
        for path in (run, *run.rglob("*")):
            os.utime(path, (long_ago, long_ago))


def _taught(scores: dict[str, tuple[float, str]], recipe: Recipe, part: float) -> dict[str, tuple[float, str]]:
    """Task -> (score, domain) after a part of a run."""
    gained, lost = _effects(recipe, part)
    return {
        name: (score + gained if domain == "new" else score - lost, domain) for name, (score, domain) in scores.items()
    }


def _evaluation(scores: dict[str, tuple[float, str]], step: int, examples: int, noise: np.random.Generator) -> str:
    """A file of results, as a line per value, like those that runs write."""
    rng = noise if step else np.random.default_rng(1)
    tasks = {
        name if name in SUITES else f"{name}@{examples}": _task(name, score, examples, rng)
        | {"suite": SUITES.get(name, "forgetting"), "domain": domain}
        for name, (score, domain) in scores.items()
    }
    content = {"schema": 1, "step": step, "seconds": 12.5, "tasks": tasks}
    # The layout of json's indent, which json itself is slow to write.
    return json.dumps(content, separators=(",\n    ", ": "))


def _effects(recipe: Recipe, part: float) -> tuple[float, float]:
    """What is learned and forgotten after a part of the run: means over examples."""
    _, is_dropping, best, width = METHODS[recipe.method]
    most, worst = CAPACITY[recipe.rank]
    fit = math.exp(-0.5 * (math.log(recipe.lr / best) / width) ** 2)
    forgets = worst * (recipe.lr / best) ** 0.4 * (0.8 if is_dropping or recipe.method == "monteclora" else 1.0)
    return most * fit * part**0.6, min(forgets, 0.25) * part


def _task(name: str, score: float, examples: int, noise: np.random.Generator) -> dict[str, Any]:
    """A task's entry: examples are of fixed difficulty, with some noise."""
    count = min(examples, 164) if name == "humaneval" else examples
    difficulty = np.random.default_rng(len(name)).permutation((np.arange(count) + 0.5) / count)
    margin = score - difficulty + noise.normal(0, 0.06, count)
    if name == "humaneval":
        correct = noise.binomial(50, 1 / (1 + np.exp(-margin * 25))) / 50
    else:
        correct = (margin > 0).astype(float)
    losses = np.log1p(np.exp(-6 * margin))
    has_choices = name in CHANCE
    pairs = zip(correct.tolist(), losses.tolist(), strict=True)
    scored = [
        {"id": str(i), "correct": c, "nll": loss} if has_choices else {"id": str(i), "correct": c}
        for i, (c, loss) in enumerate(pairs)
    ]
    mean = float(correct.mean())
    entry: dict[str, Any] = {
        "kind": "harness", "metric": "accuracy", "higher_is_better": True, "score": mean,
        "stderr": float(correct.std(ddof=1) / math.sqrt(count)), "n": count, "chance": CHANCE.get(name),
        "fingerprint": f"sha256:{name}",
        "harness": {"task": name, "version": 1.0, "num_fewshot": 5 if name == "gsm8k" else 0, "metric": "acc",
                    "filter": "none", "lm_eval": "0.4.13"},
        "truncated": 0, "not_finite": 0, "examples": scored,
    }  # fmt: skip
    if has_choices:
        entry |= {"nll": float(losses.mean()), "ece": 0.03 + 0.05 * float(noise.random())}
    if name == "humaneval":
        at = {str(k): float((1 - (1 - correct) ** k).mean()) for k in (1, 10, 50)}
        unique = {"all": 30.0 - 20 * mean, "passed": 10 * mean, "failed": 30.0 - 30 * mean}
        entry |= {"pass_at_k": at, "samples_per_problem": 50, "unique": unique}
    return entry


def _record(run: Path, recipe: Recipe, step: int, what: str, before: Path | None) -> str:
    kind, is_dropping, _, _ = METHODS[recipe.method]
    trainable = 6_738_415_616 if kind == "none" else 2_498_560 * (recipe.rank or 0)
    status = {"running": "running", "dead": "running", "preempted": "preempted", "diverged": "failed"}
    branch = f"{before}/checkpoints/{STEPS // 2}" if what == "branch" else None
    record = {
        "schema": {"newer schema": 2, "unknown schema": "draft-7"}.get(what, 1),
        "status": status.get(what, "done"),
        "config": {
            "run": {"dir": str(run), "seed": recipe.seed, "branch_from": branch},
            "model": {"base": str(before / "export") if what == "second stage" else "models/Llama-2-7b-hf"},
            "adapter": {"kind": kind, "rank": recipe.rank or 16, "alpha": 2.0 * (recipe.rank or 16)},
            "hidden_key": {"enabled": is_dropping},
            "data": {"seq_len": LENGTH},
            "train": {"steps": STEPS, "global_batch_rows": recipe.batch_rows},
            "optim": {"kind": "lionw", "lr": recipe.lr, "schedule": "trapezoid"},
        },
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "world": {"size": 32},
        "parameters": {"total": 6_738_415_616 + (0 if kind == "none" else trainable), "trainable": trainable},
        "base_fingerprint": f"sha256:{'stage' if what == 'second stage' else 'base'}",
        "epoch": {"rows": STEPS * recipe.batch_rows // 2, "exact": True},
        "step": step,
        "steps": STEPS,
        "tokens_seen": step * recipe.batch_rows * LENGTH,
        "seconds": 30.0 * step,
        "started": "2026-01-02T03:04:05+00:00",
        "finished": None if status.get(what) == "running" else "2026-01-02T09:04:05+00:00",
    }
    text = json.dumps(record, indent=1)
    return text[: len(text) // 2] if what == "corrupt record" else text


def _metrics(recipe: Recipe, last: int, noise: np.random.Generator, is_diverging: bool) -> str:
    learned, _ = _effects(recipe, 1.0)
    lines = []
    for step in range(4, last + 1, 4):
        loss: float | None = 0.7 - learned * (1 - math.exp(-step / 80)) + 0.01 * float(noise.normal())
        if is_diverging and step > 0.8 * last:
            loss = None
        tokens = step * recipe.batch_rows * LENGTH
        line = {"step": step, "tokens_seen": tokens, "loss": loss, "lr": recipe.lr, "grad_norm": 0.8, "penalty": None,
                "tokens_per_second": 81234.5678, "mfu": 0.41, "peak_memory_bytes": 41949184000, "skipped_steps": 0,
                "step_seconds": 30.1, "data_seconds": 0.1, "stall_seconds": 0.0, "data_hash": f"{tokens:032x}"}  # fmt: skip
        lines.append(json.dumps(line) + "\n")
    return "".join(lines)


def _write_rank(run: Path, recipe: Recipe, noise: np.random.Generator) -> None:
    """The rank of the weight change: high for full finetuning, the adapter's at most otherwise."""
    depth = np.sin(np.pi * (np.arange(LAYERS) + 0.5) / LAYERS)[:, None]
    width = np.array([1400, 1300, 1700, 1700, 2300, 2400, 2500])[None, :] if recipe.rank is None else recipe.rank
    found = width * (0.6 + 0.3 * depth) * noise.uniform(0.95, 1.0, (LAYERS, len(MODULES)))
    ranks = np.maximum(found.round().astype(int), 1).tolist()
    changed = (0.02 * depth * noise.uniform(0.8, 1.2, (LAYERS, len(MODULES)))).tolist()
    rows = [
        {"layer": layer, "module": module, "k_change": ranks[layer][column], "max_rank": 4096}
        for layer in range(LAYERS)
        for column, module in enumerate(MODULES)
    ]
    content = {
        "schema": 1, "share": 0.9, "before": "models/Llama-2-7b-hf", "after": str(run), "step": STEPS,
        "modules": list(MODULES), "layers": list(range(LAYERS)), "rank": ranks, "max_rank": 4096,
        "full_rank": [[4096] * len(MODULES)] * LAYERS,
        "relative_change": changed, "rows": rows,
    }  # fmt: skip
    (run / "weights").mkdir(exist_ok=True)
    (run / "weights" / f"rank-{STEPS}.json").write_text(json.dumps(content, indent=1))


def main() -> None:
    """Write run folders for looking at."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("root", type=Path)
    parser.add_argument("--count", type=int, default=60, help="run folders (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--examples", type=int, default=200, help="of each task (default: %(default)s)")
    args = parser.parse_args()
    print(f"{len(make_runs(args.root, args.count, args.seed, examples=args.examples))} runs in {args.root}")


if __name__ == "__main__":
    main()
