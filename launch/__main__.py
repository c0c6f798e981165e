"""`python -m launch plan RECIPE` and `python -m launch demo`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    try:
        from launch.plan.command import add_arguments, run_plan
    except ModuleNotFoundError as error:
        print(
            f"{error.name} is not installed for {sys.executable}: run `make setup` and use .venv/bin/python, or "
            "`pip install -e .` in an environment of yours",
            file=sys.stderr,
        )
        return 2
    parser = argparse.ArgumentParser(prog="python -m launch", description="Turn a run and a machine into processes.")
    commands = parser.add_subparsers(dest="command", required=True)
    plan = commands.add_parser("plan", help="will it fit, and how long will it take",
                               description="Print memory, time and traffic of every way to train a recipe on some GPUs, and "
                               "which to take; any --section.setting VALUE overrides the recipe.")  # fmt: skip
    add_arguments(plan)
    demo = commands.add_parser("demo", help="the whole story on this machine, in minutes",
                               description="Build the corpus, train base and methods, write the report. Done parts are "
                               "skipped. Any --section.setting VALUE is passed to every training run.")  # fmt: skip
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of everything (default runs/demo)")
    demo.add_argument("--ranks", type=int, default=2, help="processes per training run (default 2)")
    demo.add_argument("--until", help="stop after this stage: corpus, base, none, lora, monteclora or report")
    options, overrides = parser.parse_known_args(arguments)
    if options.command == "plan":
        return run_plan(options, overrides)
    if options.ranks < 1:
        parser.error(f"--ranks {options.ranks}: must be at least 1")
    from launch.demo import run_demo

    return run_demo(options.out.resolve(), ranks=options.ranks, until=options.until, overrides=overrides)


if __name__ == "__main__":
    sys.exit(main())
