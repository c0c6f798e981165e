"""Trying many inputs of one target in this process, each counted, of each kind of failure the smallest kept."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.folders import Content, Files, put
from tests.fuzz.target import Failure, Target, attempt

BATCH = 500
"""Inputs of one call of hypothesis, which remembers all of a call."""


@dataclass
class Tally:
    """What came of the inputs of a target.

    Attributes:
        inputs: how many were tried.
        seconds: of CPU time that it took, making the inputs included.
        results: how many of them came to what: "read", the name of an error, "failed".
        failures: of each kind the smallest.
    """

    inputs: int = 0
    seconds: float = 0.0
    results: Counter[str] = field(default_factory=Counter)
    failures: dict[str, Failure] = field(default_factory=dict)

    def add(self, result: str | Failure) -> None:
        """Count what came of an input."""
        self.inputs += 1
        if isinstance(result, str):
            self.results[result] += 1
            return
        self.results["failed"] += 1
        known = self.failures.get(result.kind)
        if known is None or size(result.files) < size(known.files):
            self.failures[result.kind] = result


def size(files: Files) -> int:
    """Bytes of all files."""
    return sum(len(content) for content in files.values() if isinstance(content, bytes))


def fuzz(
    target: Target, count: int, *, start: int, work: Path, before_each: Callable[[], object] = lambda: None
) -> Tally:
    """Try `count` inputs, which `start` decides; the input that is being tried lies in `work`/now."""
    tally, began = Tally(), time.process_time()
    folder = work / "now"
    batch = 0
    while tally.inputs < count:
        _try_batch(target, min(BATCH, count - tally.inputs), start + batch, folder, tally, before_each)
        batch += 1
    shutil.rmtree(folder, ignore_errors=True)
    tally.seconds = time.process_time() - began
    return tally


def _try_batch(
    target: Target, count: int, start: int, folder: Path, tally: Tally, before_each: Callable[[], object]
) -> None:
    @seed(start)
    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(files=target.strategy)
    def try_one(files: dict[str, Content]) -> None:
        before_each()
        tally.add(attempt_anew(target, files, folder))

    try_one()


def try_valid(target: Target, work: Path) -> None:
    """Have the target read its valid folder, which it must take; what a first call imports and caches needs no limits."""
    put(target.valid, work / "valid")
    target.read(work / "valid")
    shutil.rmtree(work / "valid")


def attempt_anew(target: Target, files: Files, folder: Path) -> str | Failure:
    """Try one input in a folder that is emptied before."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return attempt(target, files, folder)
