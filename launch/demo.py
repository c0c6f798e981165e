"""The whole story on one machine: corpus, base model, three ways to teach it code, and what each of them forgot."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from launch import local
from launch.stages import Stage, run_stages, train_unless_done
from training.record.run_record import read_json

KINDS = {"none": "full finetuning", "lora": "LoRA", "monteclora": "MonteCLoRA"}
START_OVER = "`make demo-clean` starts the demo over."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of everything (default runs/demo)")
    parser.add_argument("--ranks", type=int, default=2, help="processes per training run (default 2)")
    parser.add_argument("--until", help="stop after this stage: corpus, base, none, lora, monteclora or report")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """`python -m launch demo`."""
    if options.ranks < 1:
        print(f"--ranks {options.ranks}: must be at least 1", file=sys.stderr)
        return 2
    return run_demo(options.out.resolve(), ranks=options.ranks, until=options.until, overrides=overrides)


def run_demo(out: Path, *, ranks: int, until: str | None, overrides: list[str]) -> int:
    """Run every stage that is not done yet; return the exit code of the first that fails, else 0.

    `overrides` are passed to every training run, for a shorter or longer story.
    """
    return run_stages(plan_stages(out, ranks, overrides), until=until)


def plan_stages(out: Path, ranks: int, overrides: list[str]) -> list[Stage]:
    """The stages in order."""
    corpus, base = out / "corpus", out / "base"
    recipes = local.ROOT / "recipes"

    def train(recipe: str, name: str, *settings: str) -> int:
        paths = corpus_settings(corpus, recipe)
        arguments = ["--run.dir", str(out / name), *paths, *settings, *overrides]
        return train_unless_done(recipes / recipe, ranks, arguments, start_over=START_OVER)

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
