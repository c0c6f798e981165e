"""The whole story on one machine: corpus, base model, three ways to teach it code, and what each of them forgot."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from launch import local
from training.recipe import ConfigError, load_config
from training.record.run_record import directory_problems, read_json

KINDS = {"none": "full finetuning", "lora": "LoRA", "monteclora": "MonteCLoRA"}
DS_CONFIG = local.ROOT / "ds_configs" / "zero3_cpu.json"
STOPPED = 130


@dataclass(frozen=True)
class Stage:
    """One part of the demo; running it again when it is done costs nothing."""

    name: str
    title: str
    run: Callable[[], int]


def run_demo(out: Path, *, ranks: int, until: str | None, overrides: list[str]) -> int:
    """Run every stage that is not done yet; return the exit code of the first that fails, else 0.

    `overrides` are passed to every training run, for a shorter or longer story.
    """
    console = Console(highlight=False)
    stages = plan_stages(out, ranks, overrides)
    names = [stage.name for stage in stages]
    if until is not None and until not in names:
        print(f"--until {until}: must be one of {', '.join(names)}", file=sys.stderr)
        return 2
    began = time.monotonic()
    local.terminate_like_interrupt()
    for number, stage in enumerate(stages, start=1):
        console.rule(f"[bold]{number}/{len(stages)}  {stage.title}", align="left")
        try:
            code = stage.run()
        except KeyboardInterrupt:
            console.print("\nStopped; what was done is kept. Run the same command again to continue.")
            return STOPPED
        if code != 0:
            console.print(f"\nThe stage '{stage.name}' ended with exit code {code}; its messages are above.")
            return code
        if stage.name == until:
            break
    console.print(f"This took {time.monotonic() - began:.0f} s.", style="dim")
    return 0


def plan_stages(out: Path, ranks: int, overrides: list[str]) -> list[Stage]:
    """The stages in order."""
    corpus, base = out / "corpus", out / "base"
    recipes = local.ROOT / "recipes"

    def train(recipe: str, name: str, *settings: str) -> int:
        paths = corpus_settings(corpus, recipe)
        return train_unless_done(recipes / recipe, ranks, ["--run.dir", str(out / name), *paths, *settings, *overrides])

    stages = [
        Stage("corpus", "Corpus and tokenizer from this Python installation",
              lambda: local.run_module("data_pipeline", "demo", "--out", str(corpus))),
        Stage("base", "Base model: a small LLaMA learns prose", lambda: train("demo_base.toml", "base")),
    ]  # fmt: skip
    for kind, label in KINDS.items():
        settings = ["--adapter.kind", kind, "--model.base", str(base / "export")]
        stages.append(
            Stage(kind, f"The base learns code: {label}",
                  lambda kind=kind, settings=settings: train("demo.toml", kind, *settings))  # type: ignore[misc]
        )  # fmt: skip
    report = ["report", str(out), "--out", str(out / "report")]
    collect = ["collect", str(out), "--out", str(out / "collected")]
    stages += [
        Stage("rank", "How many directions each change has", lambda: rank_unless_done([out / kind for kind in KINDS])),
        Stage("collect", "Every run and checkpoint on one page", lambda: local.run_module("evals", *collect)),
        Stage("report", "Learned and forgotten", lambda: local.run_module("evals", *report)),
    ]
    return stages


def corpus_settings(corpus: Path, recipe: str) -> list[str]:
    """Overrides that point a demo recipe's data at this corpus."""
    domain = "prose" if recipe == "demo_base.toml" else "code"
    settings = ["--data.tokenizer", str(corpus / "tokenizer.model")]
    settings += [f"--data.sources.{domain}.path", str(corpus / domain / "train.jsonl")]
    suffixes = ("",) if recipe == "demo_base.toml" else ("", "_choice")
    for name in ("prose", "code"):
        for suffix in suffixes:
            settings += [f"--eval.tasks.{name}{suffix}.path", str(corpus / name / "heldout.jsonl")]
    return settings


def rank_unless_done(runs: list[Path]) -> int:
    """Decompose the change that each run made to the base, unless that is there."""
    for run in runs:
        step = (read_json(run / "run.json") or {}).get("step")
        if (run / "weights" / f"rank-{step}.json").exists():
            print(f"{run.name}: done already")
        elif code := local.run_module("training.checkpoint", "rank", str(run), "--step", str(step), "--only-change"):
            return code
    return 0


def train_unless_done(recipe: Path, ranks: int, settings: list[str]) -> int:
    """Train, or say that the run is done; a finished run of another recipe is refused like any other."""
    try:
        config = load_config(recipe, settings, world_size=ranks, also_check=directory_problems)
    except ConfigError as error:
        print(f"\n{error}\n", file=sys.stderr)
        if "belongs to a different recipe" in str(error):
            print("`make demo-clean` starts the demo over.", file=sys.stderr)
        return 2
    record = read_json(config.run.dir / "run.json") or {}
    if record.get("status") == "done":
        print(f"{config.run.dir.name}: done already, {record['step']} steps in {record['seconds']:.0f} s")
        return 0
    return local.train(recipe, DS_CONFIG, ranks, settings)
