"""`python -m launch COMMAND`: plan, submit, sweep, status, preflight, demo and study; job is what the batch scripts call."""

from __future__ import annotations

import argparse
import importlib
import sys
from dataclasses import dataclass

from training.closed_pipe import give_up_output


@dataclass(frozen=True)
class Command:
    """A subcommand: `module` declares its options in `add_arguments(parser)` and does it in `run(options, overrides)`."""

    module: str
    help: str
    description: str
    has_overrides: bool = True
    """Whether it takes settings of a recipe."""


COMMANDS = {
    "plan": Command(
        "launch.plan.command", "will it fit, and how long will it take",
        "Print memory, time and traffic of every way to train a recipe on some GPUs, and which to take.",
    ),
    "submit": Command(
        "launch.submit.command", "a run as a job of Slurm",
        "Check a run and what it asks Slurm for, write the batch script into the run directory, submit it.",
    ),
    "job": Command(
        "launch.job.command", "what slurm/job.sh asks before and after training",
        "Called by the batch scripts: may the job begin, is it to come back.",
    ),
    "sweep": Command(
        "launch.sweep.command", "many runs from one file: a grid of settings, here or as an array job",
        "Expand a grid of settings into cells, and train those that are not done, on this machine or as a Slurm array. A cell that "
        "diverged is left alone: to train it anew, remove its folder.",
        has_overrides=False,
    ),
    "status": Command(
        "launch.status.command", "every run of a folder: how far it is, when it will be done, why it stopped",
        "Show every run under some folders, what needs somebody first. Nothing is changed. ETA: the steps that are left, each as "
        "long as those last logged, with saving; and the evaluations that are left, each as long as their mean so far.",
        has_overrides=False,
    ),
    "preflight": Command(
        "launch.preflight.command", "are the nodes fit for a run? started like training, on every rank",
        "Check the nodes, their storage, inputs, versions and wires, and name the one that fails. Started on every rank by "
        "any launcher of training.",
    ),
    "demo": Command(
        "launch.demo", "the whole story on this machine, in minutes",
        "Build the corpus, train base and methods, write the report. Done parts are skipped.",
    ),
    "study": Command(
        "launch.study", "a sweep on this machine, and what the papers' claims come to in it",
        "Build the corpus, train the base and every cell of a sweep, and write down what holds of the claims about LoRA, MonteCLoRA and "
        "HiddenKey. Takes hours; done parts are skipped.",
        has_overrides=False,
    ),
}  # fmt: skip
OVERRIDES = " Any --section.setting VALUE overrides the recipe."


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m launch", description="Turn a run and a machine into processes.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        description = command.description + (OVERRIDES if command.has_overrides else "")
        subparser = commands.add_parser(name, help=command.help, description=description)
        if words[:1] == [name]:
            try:
                # Only what is asked for: the rest may take a while, or need what isn't there.
                module = importlib.import_module(command.module)
            except ModuleNotFoundError as error:
                print(
                    f"{error.name} is not installed for {sys.executable}: run `make setup` and use .venv/bin/python, or "
                    "`pip install -e .` in an environment of yours",
                    file=sys.stderr,
                )
                return 2
            module.add_arguments(subparser)
    options, overrides = parser.parse_known_args(words)
    try:
        code = int(module.run(options, overrides))
        sys.stdout.flush()
    except SystemExit as left:
        if isinstance(left.__context__, BrokenPipeError):  # as rich passes it on
            return give_up_output()
        raise
    except BrokenPipeError:
        return give_up_output()
    return code


if __name__ == "__main__":
    sys.exit(main())
