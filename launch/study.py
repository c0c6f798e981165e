"""A study on one machine, from the corpus to the verdicts: base model, every cell of a sweep, and what the papers' claims come to."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from launch import local
from launch.stages import Stage, run_stages, train_unless_done
from launch.sweep.cells import Sweep, expand
from launch.sweep.command import FAILED
from launch.sweep.definition import read_definition
from launch.sweep.states import states_of
from training.recipe import ConfigError
from training.record.run_record import read_json

SWEEP = local.ROOT / "recipes" / "study_tiny.toml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "sweep", type=Path, nargs="?", default=SWEEP, help="the study's sweep (default: study_tiny.toml)"
    )
    parser.add_argument("--at-once", type=int, help="cells that train at once, each on a core (default: one per core)")
    parser.add_argument("--out", type=Path, help="where the verdicts go (default: study.md in the study's folder)")
    parser.add_argument("--until", help="stop after this stage: corpus, base, cells, ranks, collect or claims")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """`python -m launch study`."""
    at_once = options.at_once if options.at_once is not None else len(os.sched_getaffinity(0))
    if at_once < 1:
        print(f"--at-once {at_once}: must be at least 1", file=sys.stderr)
        return 2
    if options.out is not None and options.out.suffix != ".md":
        print(f"--out {options.out}: the verdicts are a Markdown file; name one that ends in .md", file=sys.stderr)
        return 2
    try:
        stages = plan_stages(options.sweep, at_once, options.out)
    except ConfigError as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 2
    return run_stages(stages, until=options.until)


def plan_stages(file: Path, at_once: int, out: Path | None) -> list[Stage]:
    """The stages in order.

    Beside the sweep NAME.toml is the recipe of its base, NAME_base.toml. The folder that the sweep's root is in has corpus,
    base and results.

    Raises:
        ConfigError: the sweep's file can't be used.
    """
    sweep = expand(read_definition(file))
    folder, base = sweep.root.parent, file.with_name(f"{file.stem}_base.toml")
    queue = [str(file), "--local", "--ranks", "1", "--at-once", str(at_once)]
    collect = ["collect", str(folder), "--out", str(folder / "collected")]
    claims = ["claims", str(folder), "--out", str(out or folder / "study.md")]
    return [
        Stage("corpus", "Corpus, instruction pairs and tokenizer from this Python installation",
              lambda: local.run_module("data_pipeline", "demo", "--out", str(folder / "corpus"))),
        Stage("base", "Base model: a small LLaMA learns prose",
              lambda: train_unless_done(base, 1, ["--run.dir", str(folder / "base")])),
        Stage("cells", f"{len(sweep.cells)} runs, {at_once} at once", lambda: train_cells(sweep, queue)),
        Stage("ranks", "How many directions the changes of all weights have", lambda: rank_changes(sweep)),
        Stage("collect", "Every run and checkpoint on one page", lambda: local.run_module("evals", *collect)),
        Stage("claims", "What the papers' claims come to", lambda: local.run_module("evals", *claims)),
    ]  # fmt: skip


def train_cells(sweep: Sweep, queue: list[str]) -> int:
    """Train the cells that are not done; those that diverged are a result like any other."""
    code = local.run_module("launch", "sweep", *queue)
    if code == FAILED and all(state.state == "done" or state.has_diverged for state in states_of(sweep, None)):
        return 0
    return code


def rank_changes(sweep: Sweep) -> int:
    """Decompose the changes at every checkpoint of cells that train all weights and change nothing else, unless that is there."""
    for cell in sweep.cells:
        settings = {path: value for path, value in cell.settings.items() if not path.startswith(("optim.lr", "run."))}
        is_plain = settings.get("adapter.kind") == "none" and not any(
            path.startswith(("model.", "optim.", "hidden_key.")) for path in settings
        )
        if not is_plain or (read_json(cell.run_dir / "run.json") or {}).get("status") != "done":
            continue
        # A folder whose checkpoints were removed has no rank, which the claims say.
        for step in sorted(int(path.name) for path in cell.run_dir.glob("checkpoints/*") if path.name.isdigit()):
            if (cell.run_dir / "weights" / f"rank-{step}.json").exists():
                continue
            words = ["rank", str(cell.run_dir), "--step", str(step), "--only-change"]
            if code := local.run_module("training.checkpoint", *words):
                return code
    return 0
