"""`python -m launch plan RECIPE` and `python -m launch demo`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from launch.demo import run_demo
from launch.plan import PlanError, make_plan, shape_of
from training.config import Kind
from training.recipe import ConfigError, load_config


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m launch", description="Turn a run and a machine into processes.")
    commands = parser.add_subparsers(dest="command", required=True)
    plan = commands.add_parser("plan", help="what a recipe costs: parameters, memory per rank, tokens",
                               description="Print what a recipe costs; any --section.setting VALUE overrides it.")  # fmt: skip
    plan.add_argument("recipe", type=Path, help="TOML file of the run")
    plan.add_argument("--ranks", type=int, default=1, help="number of GPUs, one rank each (default 1)")
    demo = commands.add_parser("demo", help="the whole story on this machine, in minutes",
                               description="Build the corpus, train base and methods, write the report. Done parts are "
                               "skipped. Any --section.setting VALUE is passed to every training run.")  # fmt: skip
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of everything (default runs/demo)")
    demo.add_argument("--ranks", type=int, default=2, help="processes per training run (default 2)")
    demo.add_argument("--until", help="stop after this stage: corpus, base, none, lora, monteclora or report")
    options, overrides = parser.parse_known_args(arguments)
    if options.ranks < 1:
        parser.error(f"--ranks {options.ranks}: must be at least 1")
    if options.command == "demo":
        return run_demo(options.out.resolve(), ranks=options.ranks, until=options.until, overrides=overrides)
    return print_plan(options.recipe, options.ranks, overrides)


def print_plan(recipe: Path, ranks: int, overrides: list[str]) -> int:
    """Print a table of what each adapter.kind costs with this recipe."""
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    try:
        config = load_config(recipe, overrides, world_size=ranks, needs_files=False)
        shape = shape_of(config)
        kinds: tuple[Kind, ...] = ("none", "lora", "monteclora")
        plans = [make_plan(config, shape, ranks, kind) for kind in kinds]
    except (ConfigError, PlanError) as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 2
    table = Table(title=f"{recipe.name} on {ranks} rank(s)", title_justify="left")
    columns = ("adapter.kind", "parameters", "trained", "states per rank", "checkpoint")
    for column in columns:
        table.add_column(column, justify="left" if column == "adapter.kind" else "right")
    for cost in plans:
        table.add_row(
            cost.kind, f"{cost.total_parameters:,}", f"{cost.trainable_parameters:,}",
            decimal(int(cost.state_bytes_per_rank)), decimal(cost.checkpoint_bytes), style="bold" if cost.kind == config.adapter.kind else None,
        )  # fmt: skip
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{cost.tokens_per_step:,} tokens per step in {cost.micro_batches_per_step} micro-batch(es) per rank, "
        f"{cost.tokens:,} in {config.train.steps:,} steps."
    )
    forwards, backwards = config.hidden_key.passes()
    if forwards > 1:
        console.print(f"HiddenKey: {forwards} forward and {backwards} backward pass(es) over every row.")
    console.print("States: weights, gradients, fp32 masters and AdamW moments under ZeRO-3; activations come on top.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
