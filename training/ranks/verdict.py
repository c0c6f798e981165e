"""Why a run ends: what the ranks report, which of it is the cause, and what is said about it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from training.command_line import EXIT_FAILED

Kind = Literal["error", "user error", "death", "hang", "echo", "stop"]
"""Echo: the error that another rank's end causes in a collective. Stop: asked for before training has begun."""

WEIGHT: dict[Kind, int] = {"user error": 0, "error": 0, "death": 1, "hang": 2, "echo": 3, "stop": 4}
"""The cause is the first report of those with the least weight."""

PATIENCE: dict[Kind, float] = {"user error": 1.0, "error": 1.0, "death": 1.0, "hang": 0.0, "echo": 6.0, "stop": 1.0}
"""Seconds to wait for a better cause than the best there is, while some rank has neither reported nor died."""

ECHO_TYPES = frozenset({"DistError", "DistBackendError", "DistNetworkError", "DistStoreError"})
ECHO_TEXT = re.compile(r"gloo[/:]|\bNCCL\b|Connection (closed|reset) by peer|Broken pipe|Socket closed")

DIED = "died without a word (killed? out of memory?)"
UNREACHABLE = "can't be reached any more (its node or the network lost?)"

LONGEST = 20_000
"""Characters of a message that are passed on."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one rank says of its end, or others of it."""

    rank: int
    kind: Kind
    text: str
    """An error's message, what has become of a dead rank, who is where in a hang, who asked for a stop."""
    type_name: str = ""
    """Of an error."""
    exit_code: int = EXIT_FAILED

    @property
    def error(self) -> str:
        """An error as the last line of its traceback has it."""
        return f"{self.type_name}: {self.text}" if self.type_name and self.text else self.text or self.type_name


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a run ends, on all ranks."""

    kind: Kind
    rank: int
    """Which has caused it."""
    text: str
    """The last line of the job."""
    error: str
    """What run.json says: the cause; of a stop, who asked for it."""
    exit_code: int


def report_of(error: BaseException, *, rank: int, is_user_error: bool, exit_code: int) -> Report:
    """An exception as a report; a user error is one that its message says all about."""
    kind: Kind = "user error" if is_user_error else "echo" if is_echo(error) else "error"
    return Report(rank=rank, kind=kind, text=str(error)[:LONGEST], type_name=type(error).__name__, exit_code=exit_code)


def is_echo(error: BaseException) -> bool:
    """Whether an exception says that other ranks are gone, and not why."""
    if any(kind.__name__ in ECHO_TYPES for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and ECHO_TEXT.search(str(error)) is not None


def cause_of(reports: Sequence[Report]) -> Report:
    """The report that explains the others: the first of the least weight."""
    return min(reports, key=lambda report: WEIGHT[report.kind])


def is_settled(reports: Sequence[Report], waiting_for: Collection[int], seconds: float) -> bool:
    """Whether to decide now, `seconds` after the first report, with these ranks still silent."""
    return bool(reports) and (not waiting_for or seconds >= PATIENCE[cause_of(reports).kind])


def decide(reports: Sequence[Report], *, places: Mapping[int, str], hosts: Mapping[int, str], stacks: str) -> Verdict:
    """Name the cause.

    Args:
        reports: of all ranks, in the order in which they came; at least one.
        places: where each rank is, as `place` has it.
        hosts: the node of each rank.
        stacks: where the stacks of all ranks are.
    """
    cause = cause_of(reports)
    rank, error = cause.rank, cause.error
    if cause.kind == "stop":
        text = f"stopped by {cause.text} during start-up, nothing was lost; start it again to continue"
    elif cause.kind == "death":
        text = error = f"{_death(reports, cause, places, hosts)}; stacks are in {stacks}"
    elif cause.kind == "hang":
        text = error = f"{cause.text}; stacks are in {stacks}"
    else:
        # What rank 0 says too is everybody's.
        if any((each.rank, each.kind, each.text) == (0, cause.kind, cause.text) for each in reports):
            rank = 0
        prefix = f"rank {rank}: " if rank else ""
        text = prefix + (cause.text if cause.kind == "user error" else cause.error)
        error = prefix + cause.error
    return Verdict(kind=cause.kind, rank=rank, text=text, error=error, exit_code=cause.exit_code)


def _death(reports: Sequence[Report], cause: Report, places: Mapping[int, str], hosts: Mapping[int, str]) -> str:
    later = [report.rank for report in reports if report.kind == "death" and report is not cause]
    text = f"rank {cause.rank} on {hosts.get(cause.rank, 'an unknown node')} {cause.text}"
    if later:
        text += f", {name_ranks(later)} after it"
    others = {rank: what for rank, what in places.items() if rank not in (cause.rank, *later)}
    if not others:
        return text
    if len(set(others.values())) > 1:
        return f"{text}; where the others were: {where(others)}"
    who = "the other ranks were" if len(others) > 1 else f"{name_ranks(others)} was"
    return f"{text}; {who} {next(iter(others.values()))}"


def hang_report(rank: int, seconds: float, places: Mapping[int, str]) -> Report:
    """Nothing has moved on any rank; `rank` is the first of `places`, those that stood still first."""
    return Report(
        rank=rank, kind="hang", text=f"nothing has moved for {in_words(seconds)}: {where(places, is_now=True)}"
    )


def place(what: str, *, is_silent: bool = False) -> str:
    """Where a rank is: what it does, or did when it was last heard of."""
    return f'silent since "{what}"' if is_silent else f'in "{what}"'


def where(places: Mapping[int, str], *, is_now: bool = False) -> str:
    """Who is where, in the order of `places`; `is_now` makes it a sentence."""
    groups: dict[str, list[int]] = {}
    for rank, phrase in places.items():
        groups.setdefault(phrase, []).append(rank)
    parts: list[str] = []
    for phrase, ranks in groups.items():
        verb = ("is " if len(ranks) == 1 else "are ") if is_now and not parts else ""
        parts.append(f"{name_ranks(ranks)} {verb}{phrase}")
    return ", ".join(parts)


def name_ranks(ranks: Collection[int]) -> str:
    """Ranks in words: "rank 3", "ranks 0-2, 5"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"rank {text}" if len(ranks) == 1 else f"ranks {text}"


def in_words(seconds: float) -> str:
    """A time as a person writes it: "45 s", "10 min", "2 h"."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
