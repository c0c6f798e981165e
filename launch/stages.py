"""Parts of a long piece of work, one after another; what is done already is not done again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from launch import local
from training.recipe import ConfigError, load_config
from training.record.run_record import directory_problems, read_json

DS_CONFIG = local.ROOT / "ds_configs" / "zero3_cpu.json"
"""Of all training here."""
STOPPED = 130
"""Exit code after Ctrl-C or SIGTERM."""


@dataclass(frozen=True)
class Stage:
    """One part; running it again when it is done costs nothing."""

    name: str
    title: str
    run: Callable[[], int]


def run_stages(stages: Sequence[Stage], *, until: str | None = None) -> int:
    """Run every stage that is not done yet; return the exit code of the first that fails, 2 for an unknown `until`, else 0."""
    console = Console(highlight=False)
    names = [stage.name for stage in stages]
    if until is not None and until not in names:
        print(f"--until {until}: must be one of {', '.join(names)}", file=sys.stderr)
        return 2
    began = time.monotonic()
    local.terminate_like_interrupt()
    for number, stage in enumerate(stages, start=1):
        console.rule(f"[bold]{number}/{len(stages)}  {stage.title}", align="left")
        try:
            code = stage.run()
        except KeyboardInterrupt:
            code = STOPPED
        if code == STOPPED:
            console.print("\nStopped; what was done is kept. Run the same command again to continue.")
            return STOPPED
        if code != 0:
            console.print(f"\nThe stage '{stage.name}' ended with exit code {code}; its messages are above.")
            return code
        if stage.name == until:
            break
    console.print(f"This took {time.monotonic() - began:.0f} s.", style="dim")
    return 0


def train_unless_done(recipe: Path, ranks: int, settings: list[str], *, start_over: str = "") -> int:
    """Train, or say that the run is done; a finished run of another recipe is refused like any other.

    Args:
        recipe: what is trained.
        ranks: processes.
        settings: overrides of the recipe.
        start_over: what to do about a run of another recipe.
    """
    try:
        config = load_config(recipe, settings, world_size=ranks, also_check=directory_problems)
    except ConfigError as error:
        print(f"\n{error}\n", file=sys.stderr)
        if start_over and "belongs to a different recipe" in str(error):
            print(start_over, file=sys.stderr)
        return 2
    record = read_json(config.run.dir / "run.json") or {}
    if record.get("status") == "done":
        print(f"{config.run.dir.name}: done already, {record['step']} steps in {record['seconds']:.0f} s")
        return 0
    return local.train(recipe, DS_CONFIG, ranks, settings)
