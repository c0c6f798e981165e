"""The files evals/<step>.json of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evals import write_result
from evals.results import result_files
from training.files import read_json
from training.record.run_record import remove_temporaries


class Scores:
    """Scores by step; those that storage does not take wait."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir, self._folder = run_dir, run_dir / "evals"
        self._waiting: dict[int, tuple[Mapping[str, Mapping[str, Any]], float]] = {}
        self._drop_after: int | None = None
        """Scores of later steps are still to be removed."""

    def __str__(self) -> str:
        """What is missing."""
        missing = [f"{self.path(step).parent.name}/{self.path(step).name}" for step in self._waiting]
        return ", ".join(missing) or f"that scores after step {self._drop_after} are no more"

    def path(self, step: int) -> Path:
        """Where the scores after `step` steps are."""
        return self._folder / f"{step}.json"

    def has(self, step: int) -> bool:
        """Whether there are scores after `step` steps."""
        is_outdated = self._drop_after is not None and step > self._drop_after
        return step in self._waiting or (not is_outdated and os.path.exists(self.path(step)))

    def of_jobs(self, step: int) -> set[str]:
        """Names of the tasks that jobs of their own have scored after `step` steps: evals/<step>.<name>.json."""
        if self._drop_after is not None and step > self._drop_after:
            return set()
        found = (read_json(path) or {} for path in result_files(self._run_dir, step) if path != self.path(step))
        return {name for content in found if isinstance(tasks := content.get("tasks"), dict) for name in tasks}

    def kept(self, step: int) -> Path:
        """Where answers of the model after `step` steps are kept while it is being scored, and as evidence."""
        return self._folder / "kept" / f"{step}.jsonl"

    def add(self, step: int, tasks: Mapping[str, Mapping[str, Any]], seconds: float) -> None:
        """Have the scores after `step` steps (what evals.evaluate returns) wait for the next flush."""
        self._waiting[step] = tasks, seconds

    def drop(self, step: int) -> None:
        """Drop scores of later steps, of what waits now and of the files with the next flush."""
        self._waiting = {each: found for each, found in self._waiting.items() if each <= step}
        self._drop_after = step if self._drop_after is None else min(step, self._drop_after)

    def flush(self) -> None:
        """Write what waits.

        Raises:
            OSError: storage did not take it; what it did not take waits on.
        """
        # A directory that is away for a while must not be made anew: it could not come back then.
        self._run_dir.stat()
        if self._drop_after is not None:
            for path in (*self._folder.glob("[0-9]*.json"), *self._folder.glob("kept/[0-9]*")):
                number = path.name.split(".")[0]
                if number.isdigit() and int(number) > self._drop_after:
                    path.unlink()
            self._drop_after = None
        for step, (tasks, seconds) in list(self._waiting.items()):
            try:
                write_result(self._run_dir, step=step, tasks=tasks, seconds=seconds)
            except OSError:
                remove_temporaries(self._folder)
                raise
            del self._waiting[step]
