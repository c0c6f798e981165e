"""A window of steps seen by torch's profiler: chosen in the recipe, or asked for while the run goes on."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from training.config import MonitorConfig

log = logging.getLogger("palimpsest")

REQUEST = "PROFILE"
"""Name of the file in the run directory that asks for a window."""

_TABLE_ROWS = 40
"""Operations in the table of the most expensive ones."""


class Profiler:
    """Profiles a few steps on every rank, beginning with a given one or, once more, whenever REQUEST appears.

    Writes <run>/profile/step<k>-rank<r>.json.gz (Chrome's trace format, for chrome://tracing or ui.perfetto.dev) with k the
    first step seen (0-based) and, on rank 0, step<k>.txt, a table of the operations that took longest.
    """

    def __init__(self, run_dir: Path, config: MonitorConfig, rank: int) -> None:
        self._folder = run_dir / "profile"
        self._request = run_dir / REQUEST
        self._config, self._rank, self._heeds_requests = config, rank, rank == 0
        self._profile: profile | None = None
        self._first = 0

    def wants(self) -> bool:
        """Whether a window is asked for by REQUEST; only rank 0 looks, and all ranks have to be told."""
        # os.path: storage that is away asks for nothing, and is no error.
        return self._heeds_requests and self._profile is None and os.path.exists(self._request)

    def step_began(self, step: int, *, is_asked: bool = False) -> None:
        """Step `step` (0-based) begins, from which on a window is asked for or not, on all ranks alike."""
        if self._profile is None and (is_asked or step == self._config.profile_first_step):
            self._first = step
            has_gpu = torch.cuda.is_available()
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if has_gpu else [])]
            self._profile = profile(activities=activities)
            self._profile.start()

    def step_ended(self, step: int) -> None:
        """Step `step` has been done; the last one of a window writes what was seen."""
        if self._profile is not None and step >= self._first + self._config.profile_steps - 1:
            self.close()

    def close(self) -> None:
        """Write the window that is open, if one is, though it may have seen fewer steps than it should."""
        if self._profile is None:
            return
        ended, self._profile = self._profile, None
        ended.stop()
        try:
            self._write(ended)
        except (OSError, RuntimeError):
            # A full disk, say. Training needs no profile.
            log.exception("the profile of step %d could not be written", self._first)
        if self._rank == 0:
            self._answer()

    def _answer(self) -> None:
        """Remove the request; one that can't be removed would be answered for ever, and is not looked at again."""
        try:
            self._request.unlink(missing_ok=True)
        except OSError:
            log.exception("%s can't be removed and will not be heeded again in this start", self._request)
            self._heeds_requests = False

    def _write(self, ended: profile) -> None:
        """Write trace and table; a file with its final name is complete."""
        # Without its parents: a run directory that is away for a while must not be made anew.
        self._folder.mkdir(exist_ok=True)
        trace = self._folder / f"step{self._first}-rank{self._rank}.json.gz"
        # Compressed because of the end of its name.
        temporary = trace.with_name(f".{trace.name}.tmp.gz")
        try:
            ended.export_chrome_trace(str(temporary))
            temporary.replace(trace)
        except (OSError, RuntimeError):
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        if self._rank == 0:
            on = "cuda" if torch.cuda.is_available() else "cpu"
            table = ended.key_averages().table(
                sort_by=f"self_{on}_time_total", row_limit=_TABLE_ROWS, max_name_column_width=100
            )
            (self._folder / f"step{self._first}.txt").write_text(table + "\n", encoding="utf-8")
