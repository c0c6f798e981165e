"""The commands that documents tell a reader to type, each with its place and the output that is shown for it.

A Markdown document has them in fenced blocks: every statement of ```bash, and what follows `$ ` in ```console, where the other
lines are its output. A bare block is one or the other by how it begins, or neither. Recipes and scripts have them in the
comment that they begin with. A mention within a sentence is none: tests/test_readme.py looks up its options.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SHELL = ("bash", "sh", "shell")
CONSOLE = ("console",)
OTHER = ("text", "python", "toml", "json", "yaml", "ini", "html", "diff", "mermaid")
"""Languages of blocks that hold no commands."""

PROGRAM = r"(?:python3?|pip|make|deepspeed|torchrun|mpirun|sbatch|srun|squeue|sacct|scancel|scontrol|tensorboard|\S*/\.?venv/bin/\S+|\.venv/bin/\S+)"
COMMAND = re.compile(rf"(?:[A-Z_]+=\S* +)*(?:{PROGRAM}(?: |$)|(?:cd|export|source|\.|touch|kill|git|curl|mkdir|cp|mv|rm|ls|cat|less|tail|head|watch|ssh|rsync|docker) +[\w./~$<*\"'-])")  # fmt: skip
"""How a line to be typed begins."""


class UnclearBlock(ValueError):
    """A block of which it can't be said whether it is to be typed; the message has its place."""


@dataclass(frozen=True)
class Command:
    """What a reader is told to type."""

    document: str
    line: int
    """Where it begins, from 1."""
    text: str
    """As in the document, with all its lines."""
    output: tuple[str, ...] | None = field(default=None, compare=False)
    """What the document shows below it; None where it shows nothing."""

    @property
    def words(self) -> str:
        """Without comments and breaks, on one line."""
        lines = re.sub(r"(^|\s)#.*$", "", re.sub(r" *\\\n *", " ", self.text), flags=re.MULTILINE)
        return " ".join(lines.split())

    def __str__(self) -> str:
        return f"{self.document}:{self.line}: {self.words}"


def commands_of(path: Path, name: str) -> list[Command]:
    """All commands of a document: Markdown, a recipe or a script.

    Raises:
        UnclearBlock: a block can't be read, or holds both what can be typed and what can't.
    """
    text = path.read_text(encoding="utf-8")
    return list(in_markdown(text, name) if path.suffix == ".md" else in_head(text, name))


def in_markdown(text: str, name: str) -> Iterator[Command]:
    """Commands of all fenced blocks, in order."""
    for language, begin, lines in blocks(text, name):
        place = f"{name}:{begin}"
        kind = language or guess(lines, place)
        if kind in SHELL:
            yield from statements(lines, name, begin)
        elif kind in CONSOLE:
            yield from prompts(lines, name, begin)
        elif kind not in OTHER:
            raise UnclearBlock(f"{place}: a block in {kind!r}; mark it as bash, console or text")
        elif prompt := [line for line in lines if line.startswith("$ ")]:
            raise UnclearBlock(f"{place}: {prompt[0]!r} is a command in a block of {kind}; mark it as console")


def blocks(text: str, name: str) -> Iterator[tuple[str, int, list[str]]]:
    """Fenced blocks: language, number of the first line within, lines without the fence's indentation."""
    fence, language, begin, lines = None, "", 0, []
    for number, line in enumerate(text.splitlines(), start=1):
        match = re.match(r"( *)(`{3,}|~{3,}) *([\w-]*)", line)
        if fence is None:
            if match:
                fence, language, begin, lines = (match[1], match[2]), match[3], number + 1, []
        elif match and match[2].startswith(fence[1]) and line.strip() == match[2]:
            yield language, begin, lines
            fence = None
        else:
            lines.append(line.removeprefix(fence[0]))
    if fence is not None:
        raise UnclearBlock(f"{name}:{begin - 1}: a block that has no end")


def guess(lines: list[str], place: str) -> str:
    """What a block is that doesn't say it."""
    meant = [line for line in lines if line.strip() and not line.startswith("#")]
    if any(line.startswith("$ ") for line in lines):
        return "console"
    if meant and COMMAND.match(meant[0]) and not lines[0].startswith("#!"):
        return "bash"
    # A script that is shown, and what programs print, have lines that look like it.
    if not lines[:1] or not lines[0].startswith("#!"):
        for line in meant:
            if re.match(rf"(?:[A-Z_]+=\S* +)*{PROGRAM} +[\w./-]+ ", line):
                raise UnclearBlock(f"{place}: {line!r} looks like a command, and the block does not begin with one; mark it as bash or text")  # fmt: skip
    return "text"


def statements(lines: list[str], name: str, begin: int) -> Iterator[Command]:
    """Statements of a shell, each with all of its lines: continued ones, here-documents, loops, open quotes."""
    pending: list[str] = []
    for number, line in enumerate(lines, start=begin):
        if not pending and (not line.strip() or line.lstrip().startswith("#")):
            continue
        pending.append(line)
        if is_complete("\n".join(pending)):
            yield Command(name, number - len(pending) + 1, "\n".join(pending))
            pending = []
    if pending:
        raise UnclearBlock(f"{name}:{begin + len(lines) - len(pending)}: {pending[0]!r} begins what a shell can't read")


def prompts(lines: list[str], name: str, begin: int) -> Iterator[Command]:
    """Commands after `$ `, with what stands below each."""
    at = [index for index, line in enumerate(lines) if line.startswith("$ ")]
    if not at or at[0] != 0:
        raise UnclearBlock(f"{name}:{begin}: a console block begins with its first command, after '$ '")
    for start, end in zip(at, [*at[1:], len(lines)], strict=True):
        body = [lines[start].removeprefix("$ "), *lines[start + 1 : end]]
        length = next((count for count in range(1, len(body) + 1) if is_complete("\n".join(body[:count]))), None)
        if length is None:
            raise UnclearBlock(f"{name}:{begin + start}: {body[0]!r} is nothing that a shell can read")
        if body[0].lstrip().startswith("#"):
            continue
        output = tuple(line.rstrip() for line in body[length:])
        has_output = any(line.strip() for line in output)
        yield Command(name, begin + start, "\n".join(body[:length]), output if has_output else None)


def is_complete(text: str) -> bool:
    """Whether a shell would begin with it, or wait for more."""
    if re.search(r"(?<!\\)(?:\\\\)*\\$", text):
        return False
    # Angle brackets that stand for something would be redirections of nothing.
    done = subprocess.run(
        ["bash", "-n"], input=re.sub(PLACEHOLDER, "it", text) + "\n", capture_output=True, text=True, check=False
    )
    return done.returncode == 0 and not done.stderr


PLACEHOLDER = r"<[a-z][\w -]*>"
"""What a reader has to fill in."""


def in_head(text: str, name: str) -> Iterator[Command]:
    """Commands of the comment that a recipe or a script begins with: in backticks, on lines of their own, and after a colon."""
    for number, line in enumerate(text.splitlines(), start=1):
        if (line.strip() and not line.startswith("#")) or line.startswith(("# ---", "#SBATCH")):
            break
        rest = line.lstrip("#!").strip()
        found = [span for span in re.findall(r"`([^`]+)`", rest) if re.match(PROGRAM, span)]
        without = re.sub(r"`[^`]+`", "", rest)
        if match := re.search(rf"(?:^|: )({PROGRAM} .*)", without):
            found.append(re.sub(r"\s+\[.*?\]", "", match[1]))
        for span in found:
            yield Command(name, number, span.rstrip(". "))
