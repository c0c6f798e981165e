"""The text of a batch script: resources, an edit block, and one command of slurm/job.sh. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

WIDTH = 119
COMMENTS = {
    "ROOT": "checkout of this repository, on shared storage",
    "PYTHON": "of the environment, or of the container",
    "CONTAINER": "put before python, such as: apptainer exec --nv image.sif",
    "SRUN": "more options of srun, such as: --container-image=image.sqsh",
    "MAX_REQUEUES": "the job comes back at most so often",
    "RETRIES": "of these, after failures",
    "PREFLIGHT": "yes, no, or only: check the nodes before training",
    "EXCLUDE_FAILING": "yes or no: come back without nodes that preflight has named",
    "STOP_BEFORE": "the run's own stop before the end; the signal above must come first",
    "EVAL_DATA": "the suites' data sets, as files",
    "DTYPE": "of weights and activations while scoring",
    "BATCH_TOKENS": "per GPU, while scoring",
}
"""What the variables of slurm/job.sh are."""
_PLAIN = re.compile(r"[\w@%+=:,./()\[\]&|!*-]+", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job asks Slurm for. Empty text: Slurm's own default."""

    nodes: int
    gpus_per_node: int
    """0 on a CPU cluster."""
    tasks_per_node: int
    cpus_per_task: int
    time: str
    """As --time takes it."""
    name: str
    output: str
    """Path with Slurm's patterns (%j the job's id, %A_%a those of an array); its folder must exist when the job starts."""
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    exclude: str = ""
    reservation: str = ""
    mem: str = ""
    """Per node."""
    gres: str = ""
    """Of a node, such as gpu:h100:8, in the place of --gpus-per-node, which not every cluster has."""
    array: str = ""
    """Tasks of an array, such as 0-5%2."""
    dependency: str = ""
    """Such as afterok:12; a job whose dependency can no longer be met is removed."""
    requeue: bool = False
    """Whether Slurm may start it again after a failure of a node, and slurm/job.sh may requeue it."""
    signal_seconds: int = 300
    """Before the end of `time`, when the run is asked to save; 0: never."""
    extra: tuple[str, ...] = ()
    """More options of sbatch, each as on its command line: --mail-type=END."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What the job runs in."""

    root: Path
    """Checkout of this repository."""
    python: Path
    """Interpreter of the environment, or of the container."""
    container: str = ""
    """A command line put before python, as the shell reads it: apptainer exec --nv image.sif."""
    srun: str = ""
    """More options of srun, as the shell reads them: --container-image=image.sqsh of pyxis."""
    setup: tuple[str, ...] = ()
    """Shell lines such as `module load cuda/12.8` or `source activate x`."""
    exports: Mapping[str, str] = field(default_factory=dict)
    """Environment variables, those of slurm/job.sh among them."""


def script(resources: Resources, environment: Environment, command: str) -> str:
    """The whole batch script.

    Args:
        resources: what the job asks for.
        environment: what it runs in.
        command: one line of shell, such as `train recipe.toml zero3.json`; `shlex.join` makes one of arguments.

    Raises:
        ValueError: a value has a line break, which a directive of sbatch can't have.
    """
    lines = [
        "#!/bin/bash",
        "# Written by python -m launch. It can be changed and submitted again: sbatch FILE",
        "",
        _rule("Edit for your cluster"),
        *(f"#SBATCH {option}" for option in _options(resources)),
        "",
        *_aligned(_assignments(environment)),
        *environment.setup,
        _rule(),
        "",
        "# shellcheck source=slurm/job.sh",
        'source "$ROOT/slurm/job.sh"',
        command,
    ]
    return "\n".join(lines) + "\n"


def _rule(title: str = "") -> str:
    return f"# ---- {title} ".ljust(WIDTH, "-") if title else "# ".ljust(WIDTH, "-")


def _options(wanted: Resources) -> Iterator[str]:
    """Options of sbatch."""
    yield _option("job-name", wanted.name)
    for name in ("partition", "account", "qos", "reservation", "constraint", "exclude"):
        if value := getattr(wanted, name):
            yield _option(name, value)
    yield _option("nodes", wanted.nodes)
    yield _option("ntasks-per-node", wanted.tasks_per_node)
    if wanted.gres:
        yield _option("gres", wanted.gres)
    elif wanted.gpus_per_node:
        yield _option("gpus-per-node", wanted.gpus_per_node)
    yield _option("cpus-per-task", wanted.cpus_per_task)
    if wanted.mem:
        yield _option("mem", wanted.mem)
    yield _option("time", wanted.time)
    if wanted.signal_seconds:
        yield _option("signal", f"B:USR1@{wanted.signal_seconds}")
    yield "--requeue" if wanted.requeue else "--no-requeue"
    if wanted.array:
        yield _option("array", wanted.array)
    if wanted.dependency:
        yield _option("dependency", wanted.dependency)
        yield _option("kill-on-invalid-dep", "yes")
    yield "--open-mode=append"
    yield _option("output", wanted.output)
    for option in wanted.extra:
        name, equals, value = option.partition("=")
        yield _option(name.removeprefix("--"), value) if equals and name.startswith("--") else _one_line(option)


def _option(name: str, value: object) -> str:
    """An option as sbatch reads it from a script: double quotes, in which a backslash takes the next character as it is."""
    text = _one_line(str(value))
    if not _PLAIN.fullmatch(text):
        text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"--{name}={text}"


def _one_line(text: str) -> str:
    if "\n" in text or "\r" in text:
        raise ValueError(f"{text!r}: has a line break, which Slurm's options can't have")
    return text


def _assignments(environment: Environment) -> Iterator[tuple[str, str]]:
    """Lines of the edit block, each with its comment."""
    yield f"ROOT={shlex.quote(str(environment.root))}", COMMENTS["ROOT"]
    python = environment.python
    if python.is_relative_to(environment.root):
        yield f'PYTHON="$ROOT"/{shlex.quote(str(python.relative_to(environment.root)))}', COMMENTS["PYTHON"]
    else:
        yield f"PYTHON={shlex.quote(str(python))}", COMMENTS["PYTHON"]
    yield f"CONTAINER={shlex.quote(environment.container) if environment.container else ''}", COMMENTS["CONTAINER"]
    yield f"SRUN={shlex.quote(environment.srun) if environment.srun else ''}", COMMENTS["SRUN"]
    for name, value in environment.exports.items():
        yield f"export {name}={shlex.quote(value)}", COMMENTS.get(name, "")


def _aligned(lines: Iterator[tuple[str, str]]) -> list[str]:
    """Lines with their comments below each other; a long one has none."""
    found = [(line, comment if len(line) <= WIDTH // 2 else "") for line, comment in lines]
    column = max(len(line) for line, comment in found if comment)
    return [f"{line.ljust(column)}  # {comment}" if comment else line for line, comment in found]
