"""Every command of every document is typed, from top to bottom, in a small world (world.py, small.py).

It must end with 0, or as the document says, and what a document shows below it must have the shape of what it prints now.
What is not run as it stands is in EXCEPTIONS, with a reason.
"""

from __future__ import annotations

import functools
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.documentation.extraction import PLACEHOLDER, Command, commands_of
from tests.documentation.shape import outdated
from tests.documentation.small import (
    CODES,
    COMMANDS,
    CONTENT,
    EXCEPTIONS,
    FRESH,
    RECIPES,
    SCRIPTS,
    SOURCES,
    Excepted,
    smaller,
)
from tests.documentation.world import Done, Shell, World
from tests.ranks import ROOT
from tests.slurm.cluster import Cluster

DOCUMENTS = [
    str(path.relative_to(ROOT))
    for path in [
        ROOT / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "recipes").glob("*.toml")),
        *sorted((ROOT / "slurm").glob("*.sh")),
        ROOT / "CONTRIBUTING.md",
    ]
]
FOR_SLURM = r"^(\w+=\S+ )*(sbatch|srun|squeue|sacct|scancel|scontrol)\b|-m launch (submit|status \$SCRATCH)|-m launch sweep .*--nodes"
FOR_THE_SHELL = r"^(export|cd|\.|source) "
"""Needed by all that follows, with and without Slurm."""


@functools.cache
def commands(name: str) -> list[Command]:
    return commands_of(ROOT / name, name)


def every_command() -> list[Command]:
    return [command for name in DOCUMENTS for command in commands(name)]


def excepted(command: Command) -> Excepted | None:
    return next((one for one in EXCEPTIONS if re.search(one.pattern, command.words)), None)


def matching(table: Iterable[tuple[str, str]] | Iterable[tuple[str, int]], words: str) -> list[str] | list[int]:
    return [value for pattern, value in table if re.search(pattern, words)]  # type: ignore[return-value]


class Reader:
    """Somebody who types all that a document says, and notes what did not work."""

    def __init__(self, world: World, done: set[str], name: str, cluster: Cluster | None) -> None:
        self.world, self.done, self.cluster = world, done, cluster
        self.shell = Shell(world, cluster.environment if cluster else {}, f"{name}{'-slurm' if cluster else ''}")
        self.jobs = set(self._states())
        self.problems: list[str] = []

    def type(self, command: Command) -> None:
        """Run a command, unless the same one has worked before."""
        exception = excepted(command)
        text = command.text if exception is None else exception.instead
        if text is None or (command.words in self.done and not re.search(FOR_THE_SHELL, command.words)):
            return
        # Of a recipe that is typed in, too, few steps are made.
        text = smaller(smaller(text, COMMANDS), RECIPES if "<<" in text else ())
        if re.search(rf"{PLACEHOLDER}|…", text):
            self.problems.append(f"{command}\n  nothing is known for what has to be filled in (small.py, COMMANDS)")
            return
        for runs in matching(FRESH, command.words):
            for run in self.world.scratch.glob(str(runs)):
                shutil.rmtree(run)
        began = time.monotonic()
        done = self.shell.run(text, LINE=str(command.line), JOB=self._last_job())
        done = self._jobs_of(done)
        print(f"{time.monotonic() - began:5.1f} s  {command}")
        if problem := self._judge(command, done):
            self.problems.append(f"{command}\n  typed: {text}\n  {problem}\n{indented(done.output[-4000:])}")
        else:
            self.done.add(command.words)

    def _judge(self, command: Command, done: Done) -> str | None:
        """What is wrong with what became of it."""
        expected = int(([*matching(CODES, command.words), 0])[0])
        if done.code != expected:
            return f"ended with {done.code}, not {expected}"
        if "Traceback (most recent call last)" in done.output:
            return "ended with a traceback"
        if command.output is not None:
            content = tuple(str(one) for one in matching(CONTENT, command.words))
            printed = done.output
            # A document writes paths as its reader would.
            for path, short in ((f"{self.world.checkout}/", ""), (str(self.world.scratch), "$SCRATCH")):
                printed = printed.replace(path, short)
            if lines := outdated(command.output, printed, content):
                return "the document shows what is not printed any more:\n" + indented("\n".join(lines))
        return None

    def _last_job(self) -> str:
        """The last one that is done, for a command that waits for it."""
        return max(
            (number for number, (state, _) in self._states().items() if state == "COMPLETED"), key=int, default=""
        )

    def _states(self) -> dict[str, tuple[str, str]]:
        """State and output file of the cluster's jobs."""
        if self.cluster is None:
            return {}
        text = self.cluster.run("scontrol", "show", "job", "-o") or ""
        return {
            match[1]: (match[2], match[3])
            for match in re.finditer(r"^JobId=(\d+).*?\bJobState=(\S+)(?:.*?\bStdOut=(\S*))?", text, re.MULTILINE)
        }

    def _jobs_of(self, done: Done) -> Done:
        """Wait for the jobs that a command has submitted; one that fails is the command's failure."""
        if self.cluster is None:
            return done
        deadline = time.monotonic() + 400
        while any(state in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING") for state, _ in self._states().values()):
            if time.monotonic() > deadline:
                self.cluster.run("scancel", "--user=root")
                return Done(-1, f"{done.output}\na job came to no end\n{self.cluster.logs()}")
            time.sleep(0.2)
        new = {number: found for number, found in self._states().items() if number not in self.jobs}
        self.jobs |= set(new)
        output = done.output
        for number, (state, path) in new.items():
            said = Path(path).read_text(errors="replace") if path and Path(path).is_file() else ""
            output += f"\n--- job {number}: {state}\n{said}"
        failed = any(state != "COMPLETED" for state, _ in new.values())
        return Done(1 if failed and done.code == 0 else done.code, output)


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world in which the demo is done and a run of the 7B recipe is there, as most documents presuppose."""
    made = World(tmp_path_factory.mktemp("documentation"))
    made.make()
    shell = Shell(made, {}, "preparation")
    for command in (
        "python -m data_pipeline index damaged",
        "make demo",
        "python training/main.py --ds_config ds_configs/zero3.json --recipe recipes/cpt_code_llama7b.toml",
        # As if a cell of that sweep were done, for those who only collect it.
        "mkdir $SCRATCH/palimpsest/lora-rank-lr && cp -r $SCRATCH/palimpsest/{cpt-code-llama7b-none-seed17,lora-rank-lr/cell}",
    ):
        began = time.monotonic()
        done = shell.run(command, seconds=500)
        print(f"{time.monotonic() - began:5.1f} s  {command}")
        assert done.code == 0, f"{command}\n{done.output}"
    made.damage()
    return made


@pytest.fixture(scope="session")
def done() -> set[str]:
    """Commands that have worked; the same one is not typed again in another document."""
    return set()


def with_commands(*, slurm: bool) -> list[str]:
    """Documents that have some for Slurm, or others."""
    return [name for name in DOCUMENTS if any(bool(re.search(FOR_SLURM, one.words)) == slurm for one in commands(name))]


@pytest.mark.dist
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", with_commands(slurm=False))
def test_commands(name: str, world: World, done: set[str]) -> None:
    reader = Reader(world, done, name, None)
    for command in commands(name):
        if not re.search(FOR_SLURM, command.words):
            reader.type(command)
    assert not reader.problems, "\n\n".join(reader.problems)


@pytest.mark.slurm
@pytest.mark.dist
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", with_commands(slurm=True))
def test_commands_of_slurm(name: str, world: World, done: set[str], cluster: Cluster) -> None:
    reader = Reader(world, done, name, cluster)
    for command in commands(name):
        if re.search(f"{FOR_SLURM}|{FOR_THE_SHELL}", command.words):
            reader.type(command)
    assert not reader.problems, "\n\n".join(reader.problems)


def test_there_are_commands() -> None:
    found = every_command()
    assert len(found) >= 80
    for program in ("make", "sbatch", "deepspeed", "torchrun", "mpirun", "python -m launch", "python -m evals"):
        assert any(program in command.words for command in found), program


@pytest.mark.parametrize("exception", EXCEPTIONS, ids=lambda one: one.pattern)
def test_every_exception_is_needed_and_covered(exception: Excepted) -> None:
    assert any(re.search(exception.pattern, command.words) for command in every_command())
    assert exception.instead if exception.covered_by is None else (ROOT / exception.covered_by).is_file()


@pytest.mark.parametrize("table", [COMMANDS, CODES, CONTENT, FRESH], ids=["commands", "codes", "content", "fresh"])
def test_what_is_known_of_commands_is_needed(table: tuple[tuple[str, str], ...]) -> None:
    texts = [one for command in every_command() for one in (command.text, command.words)]
    assert [pattern for pattern, _ in table if not any(re.search(pattern, text) for text in texts)] == []


@pytest.mark.parametrize(("table", "folder"), [(RECIPES, "recipes"), (SCRIPTS, "slurm")])
def test_what_is_made_smaller_is_there(table: tuple[tuple[str, str], ...], folder: str) -> None:
    text = "\n".join(path.read_text() for path in sorted((ROOT / folder).iterdir()) if path.is_file())
    assert [pattern for pattern, _ in table if not re.search(pattern, text, re.MULTILINE)] == []


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_made_smaller_in_the_program_is_there(name: str) -> None:
    text = (ROOT / name).read_text()
    assert [pattern for pattern, _ in SOURCES[name] if not re.search(pattern, text)] == []
