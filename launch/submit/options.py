"""The options of a job on the command line: resources and environment, the same for one run and for a sweep."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from launch.job.settings import setting_problems
from launch.local import ROOT
from launch.slurm import count_gpus, parse_time
from launch.submit.script import Environment, Resources

STOP_BEFORE_SECONDS = 120
"""What slurm/job.sh lets a run stop by itself before the end, unless STOP_BEFORE says otherwise."""
_JOBS = re.compile(r"\d+(_\d+)?(:\d+(_\d+)?)*")
_ARRAY = re.compile(r"--ar|-a")
"""Beginnings of sbatch's option --array, which it takes abbreviated, too."""
_DEPENDENCY = re.compile(r"(after\w*|singleton)(:[\w+*:,?-]+)?")


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what a job asks for and what it runs in."""
    slurm = parser.add_argument_group("resources, as sbatch has them")
    slurm.add_argument("--nodes", type=int, default=1, help="number of machines (default 1)")
    slurm.add_argument("--gpus", type=int, default=8, help="GPUs of each machine (default 8; 0: CPUs only)")
    slurm.add_argument(
        "--tasks-per-node", type=int, help="processes on each machine (default: its GPUs, without any 1)"
    )
    slurm.add_argument("--cpus-per-task", type=int, help="CPUs of each process (default 8; without GPUs 2)")
    slurm.add_argument(
        "--time", default="24:00:00", help="wall time, after which a job goes on as another (default 24:00:00)"
    )
    slurm.add_argument("--signal", type=int, default=300, metavar="SECONDS",
                       help="before the wall time, when the run saves everything (default 300)")  # fmt: skip
    for name in ("partition", "account", "qos", "constraint", "exclude", "reservation"):
        slurm.add_argument(f"--{name}", default="", help="as sbatch has it (default: Slurm's own)")
    slurm.add_argument("--mem", default="", help="memory of each machine, such as 500G; 0: all (default: Slurm's own)")
    slurm.add_argument("--gres", default="", metavar="LIST",
                       help="of each machine, such as gpu:h100:8: asks for the GPUs in the place of --gpus-per-node")  # fmt: skip
    slurm.add_argument("--after", default="", metavar="JOB",
                       help="begin when this job has ended well; or any dependency, such as afterany:12")  # fmt: skip
    slurm.add_argument("--sbatch", action="append", nargs="?", const="", default=[], metavar="OPTION",
                       help="another option of sbatch, written with = (repeatable): --sbatch=--mail-type=END")  # fmt: skip
    inside = parser.add_argument_group("what the job runs in")
    inside.add_argument("--python", help="interpreter (default: this one; with --container: python)")
    inside.add_argument("--container", default="", help='put before python: "apptainer exec --nv image.sif"')
    inside.add_argument("--srun", nargs="?", const=None, default="", metavar="OPTIONS",
                        help="more options of srun, written with =: --srun=--container-image=image.sqsh")  # fmt: skip
    inside.add_argument("--setup", action="append", default=[], metavar="LINE",
                        help='a line of shell before all (repeatable): "module load cuda/12.8"')  # fmt: skip
    inside.add_argument("--export", action="append", default=[], metavar="NAME=VALUE", help="a variable (repeatable)")
    inside.add_argument("--max-requeues", type=int, default=50, help="the job comes back at most so often (default 50)")
    inside.add_argument("--no-preflight", action="store_true", help="don't check the nodes before training")
    inside.add_argument(
        "--no-exclude", action="store_true", help="don't come back without nodes that fail these checks"
    )


def job_problems(options: argparse.Namespace) -> list[str]:
    """What is wrong with the options by themselves.

    Args:
        options: those of `add_job_arguments`, and `no_files`: the interpreter need not be on this machine.
    """
    problems = [f"--{name.replace('_', '-')} {value}: must be at least {least}"
                for name, least in (("nodes", 1), ("gpus", 0), ("tasks_per_node", 1), ("cpus_per_task", 1),
                                    ("max_requeues", 0), ("signal", 0))
                if (value := getattr(options, name)) is not None and value < least]  # fmt: skip
    if options.gpus > 0 and options.tasks_per_node not in (None, options.gpus):
        problems.append(
            f"--tasks-per-node {options.tasks_per_node}: with --gpus {options.gpus} there is one process per GPU; leave it "
            "out, or give as many GPUs"
        )
    try:
        seconds = parse_time(options.time)
        if seconds is not None and seconds <= options.signal:
            problems.append(
                f"--time {options.time}: the run is asked to save {options.signal} s before the end (--signal), which is at "
                "once; give it more time, or a smaller --signal"
            )
    except ValueError as error:
        problems.append(f"--time {options.time}: {error}")
    for text in options.export:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*=.*", text, re.DOTALL):
            problems.append(f"--export {text}: write NAME=VALUE")
    problems += [f"--export {problem}" for problem in setting_problems(_exported(options))]
    if options.srun is None:
        problems.append("--srun: needs a value; write it with =, as in --srun=--container-image=image.sqsh")
    problems += _command_problems(options)
    for text in options.sbatch:
        if not text.startswith("-"):
            problems.append(f"--sbatch {text}".rstrip() + ": needs an option, with =, as in --sbatch=--mail-type=END")
        elif _ARRAY.match(text):
            problems.append(
                f"--sbatch {text}: several jobs would train one run; python -m launch sweep submits an array"
            )
    if options.gres and (gpus := count_gpus(options.gres)) != options.gpus:
        problems.append(f"--gres {options.gres}: asks for {gpus} GPUs of each machine, and --gpus for {options.gpus}")
    if options.after and not (_JOBS.fullmatch(options.after) or _DEPENDENCY.fullmatch(options.after)):
        problems.append(f"--after {options.after}: write a job's number, or a dependency such as afterany:12")
    lines = {"--container": [options.container], "--srun": [options.srun or ""], "--sbatch": options.sbatch}
    lines |= {f"--{name}": [getattr(options, name)]
              for name in ("partition", "account", "qos", "constraint", "exclude", "reservation", "mem", "gres", "time")}  # fmt: skip
    problems += [f"{name}: must be one line" for name, texts in lines.items() if any("\n" in text for text in texts)]
    return problems


def _command_problems(options: argparse.Namespace) -> list[str]:
    """What is wrong with what is put before python, and with python."""
    problems = []
    for name in ("container", "srun"):
        try:
            words = shlex.split(getattr(options, name) or "")
        except ValueError as error:
            problems.append(f"--{name} {getattr(options, name)}: can't be read as a shell does: {error}")
            continue
        problems += [f"--srun {word}: would number the lines that srun prints, which the job reads; leave it out"
                     for word in words if name == "srun" and word in ("-l", "--label")]  # fmt: skip
    python = _python(options)
    if python.is_absolute() and not (_is_in_container(options) or options.no_files or shutil.which(python)):
        problems.append(
            f"--python {python}: there is no such program on this machine; --no-files where only compute nodes have it"
        )
    return problems


def _exported(options: argparse.Namespace) -> dict[str, str]:
    """The variables of --export; what is none is left out."""
    return dict(text.split("=", 1) for text in options.export if "=" in text)


def _is_in_container(options: argparse.Namespace) -> bool:
    return bool(options.container) or "container" in (options.srun or "")


def _python(options: argparse.Namespace) -> Path:
    """The interpreter; a name without a folder is looked up in the job."""
    python = options.python or ("python" if _is_in_container(options) else sys.executable)
    # The job begins in another folder. A link to an interpreter stays one: it belongs to its environment.
    return Path(os.path.abspath(python) if "/" in python else python)


def tasks_per_node(options: argparse.Namespace) -> int:
    """Processes on each machine."""
    return int(options.tasks_per_node or options.gpus or 1)


def cpus_per_task(options: argparse.Namespace) -> int:
    """CPUs of each process."""
    return int(options.cpus_per_task or (8 if options.gpus else 2))


def resources_of(options: argparse.Namespace, *, name: str, output: str) -> Resources:
    """What options without problems ask for.

    Args:
        options: those of `add_job_arguments`.
        name: of the job.
        output: path of what it prints, with Slurm's patterns.
    """
    return Resources(
        nodes=options.nodes, gpus_per_node=options.gpus, tasks_per_node=tasks_per_node(options),
        cpus_per_task=cpus_per_task(options), time=options.time, name=name, output=output, partition=options.partition,
        account=options.account, qos=options.qos, constraint=options.constraint, exclude=options.exclude,
        reservation=options.reservation, mem=options.mem, gres=options.gres, requeue=True, signal_seconds=options.signal,
        dependency=f"afterok:{options.after}" if _JOBS.fullmatch(options.after) else options.after,
        extra=tuple(options.sbatch),
    )  # fmt: skip


def environment_of(options: argparse.Namespace, *recipes: Path) -> Environment:
    """What the job runs in.

    Args:
        options: those of `add_job_arguments`, without problems.
        recipes: the variables that they name go with the script.
    """
    exports = {"MAX_REQUEUES": str(options.max_requeues)}
    if options.no_preflight:
        exports["PREFLIGHT"] = "no"
    if options.no_exclude:
        exports["EXCLUDE_FAILING"] = "no"
    if 0 < options.signal <= STOP_BEFORE_SECONDS:
        exports["STOP_BEFORE"] = f"{options.signal // 2}s"
    for recipe in recipes:
        exports |= named_variables(recipe)
    exports |= _exported(options)
    return Environment(
        root=ROOT,
        python=_python(options),
        container=options.container,
        srun=options.srun,
        setup=tuple(options.setup),
        exports=exports,
    )


def named_variables(recipe: Path) -> dict[str, str]:
    """Environment variables that a recipe names in its paths, as they are now; HOME is everywhere."""
    try:
        text = recipe.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    # Not in comments.
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    names = dict.fromkeys(re.findall(r"\$\{?(\w+)", "\n".join(lines)))
    return {name: os.environ[name] for name in names if name in os.environ and name not in ("HOME", "USER")}
