"""When checkpoints are made, and which of them stay: arithmetic on steps, without files but for the scores."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from training.files import read_json
from training.length import steps_in

if TYPE_CHECKING:
    from training.config import Config

NO_SCORES: Mapping[int, float] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Retention:
    """The settings of [checkpoint] that say which steps have a checkpoint, as steps."""

    every_steps: int
    """Steps between checkpoints."""
    keep: int
    """How many of the newest stay."""
    points: tuple[tuple[int, str], ...] = ()
    """Steps whose checkpoint stays for good, and how the recipe calls each."""
    stretch: Fraction | None = None
    """Steps, not always a whole number, of which each such stretch leaves one checkpoint for good."""
    best: str | None = None
    """The task and metric of which the checkpoint with the best score stays."""
    scored_every: int = 0
    """Steps between scores, at each of which there is a checkpoint, too, when the best one is to stay; else 0."""
    scored_at: tuple[int, ...] = ()
    """Steps with scores besides, likewise."""
    first_step: int = 0
    """Step of the checkpoint from elsewhere that the run began with, else 0: what was passed until then is not its own."""

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is to be made after `step` steps; that at the end of the run is not looked at here."""
        return (
            step % self.every_steps == 0
            or any(step == point for point, _ in self.points)
            or (self.stretch is not None and self._stretches(step) > self._stretches(step - 1))
            or self.is_scored(step)
        )

    def is_scored(self, step: int) -> bool:
        """Whether the best checkpoint is to stay, and that of `step` has scores sooner or later."""
        return step in self.scored_at or (bool(self.scored_every) and step % self.scored_every == 0)

    def kept(
        self, existing: Iterable[int], *, newest: int, scores: Mapping[int, float] = NO_SCORES
    ) -> dict[int, list[str]]:
        """The steps whose checkpoints stay once that of `newest` is complete, and why, in order.

        A point of the run belongs to the first checkpoint at or after it, so that one that could not be saved in time is
        made up for by the next; one that was passed before the run began, at `first_step`, belongs to none. The step `newest`
        is always among them.

        Args:
            existing: steps that have one. Later ones than `newest` are left-overs of a past that this run does not continue;
                they count for nothing.
            newest: the step just saved.
            scores: of steps, the larger the better.
        """
        steps = sorted({step for step in existing if step <= newest} | {newest})
        reasons: dict[int, list[str]] = {}
        for step in steps[-self.keep :]:
            reasons.setdefault(step, []).append("the newest" if self.keep == 1 else f"of the newest {self.keep}")
        for point, written in self.points:
            found = next((step for step in steps if step >= point), None)
            if found is not None and not point <= self.first_step < found:
                reasons.setdefault(found, []).append(f"at {written}")
        passed = 0
        for step in steps:
            if self.stretch is None:
                break
            if step > self.first_step:
                passed = max(passed, self._stretches(self.first_step))
            # Before the end of the first stretch there is none to keep one of.
            if self._stretches(step) > passed:
                passed = self._stretches(step)
                reasons.setdefault(step, []).append(f"after every {float(self.stretch):g} steps")
        scored = [step for step in steps if step in scores]
        if self.best is not None and scored:
            reasons.setdefault(max(scored, key=lambda step: (scores[step], -step)), []).append(f"the best {self.best}")
        return dict(sorted(reasons.items()))

    def superfluous(
        self, existing: Collection[int], *, newest: int, scores: Mapping[int, float] = NO_SCORES
    ) -> list[int]:
        """The steps whose checkpoints may be deleted once that of `newest` is complete."""
        stay = self.kept(existing, newest=newest, scores=scores)
        return sorted(step for step in set(existing) if step <= newest and step not in stay)

    def _stretches(self, step: int) -> int:
        """Whole stretches in `step` steps."""
        assert self.stretch is not None
        return math.floor(step / self.stretch)


def retention_of(config: Config, rows_per_epoch: int | None, first_step: int = 0) -> Retention:
    """What a configuration, with its lengths resolved, says about checkpoints.

    Args:
        config: without problems.
        rows_per_epoch: rows in one pass over the data; None: not known, and points in epochs are left out.
        first_step: of the checkpoint from elsewhere that the run began with; see `training.checkpoint.recorded.first_step`.
    """
    wanted = config.checkpoint
    points = ((steps_in(written, config, rows_per_epoch), written) for written in wanted.keep_at)
    return Retention(
        every_steps=wanted.every_steps,
        keep=wanted.keep,
        points=tuple((math.ceil(point), written) for point, written in points if point is not None),
        stretch=None if wanted.keep_every is None else steps_in(wanted.keep_every, config, rows_per_epoch),
        best=wanted.keep_best,
        scored_every=0 if wanted.keep_best is None else config.eval.every_steps,
        scored_at=() if wanted.keep_best is None else config.eval.at_steps,
        first_step=first_step,
    )


def scores(run_dir: Path, best: str | None, steps: Iterable[int]) -> dict[int, float]:
    """The scores that <run>/evals has for some steps, the larger the better; steps without one are left out.

    Args:
        run_dir: the run's directory.
        best: a task and its metric, as in checkpoint.keep_best; None: no scores.
        steps: whose scores are wanted.
    """
    if best is None:
        return {}
    task, _, metric = best.rpartition(".")
    found = {}
    for step in steps:
        tasks = (read_json(run_dir / "evals" / f"{step}.json") or {}).get("tasks")
        result = tasks.get(task) if isinstance(tasks, dict) else None
        if isinstance(result, dict) and result.get("metric") == metric and isinstance(result.get("score"), int | float):
            found[step] = result["score"] if result.get("higher_is_better") else -result["score"]
    return found
