"""A run of two ranks that is killed again and again at random moments, against the same run undisturbed.

Each life is a start of `training.main`, with a checkpoint every other step. It is ended by SIGKILL, of all ranks or of one, by the
clock or some steps on; or by a process (a rank, or the one that writes its checkpoints) that kills itself at its n-th system call,
in the middle of a write, too; or, now and then, politely, by a PREEMPT file or SIGTERM. Counted are

  committed steps lost      a checkpoint that had its name and was not there, or not whole, or not where the next life went on
  batches                   missing, repeated or others than in the undisturbed run, by the hash over all of them
  losses and weights        that differ in any bit from those of the undisturbed run

    python benchmarks/chaos.py [--kills 200] [--quick | --bench] [--seed 1] [--json PATH]
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Run by path, a script sees its own folder where it needs the repository.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.claims import claim, options, show, write_json  # noqa: E402
from tests.chaos.lives import Differences, Life, Run, compare, disturb, settings  # noqa: E402
from tests.inputs import make_inputs  # noqa: E402

STEPS_PER_KILL = 3
"""Steps of the run for every kill that is asked for: fewer, and it would be over before the last."""


def claims_of(lives: list[Life], found: Differences) -> list[dict[str, Any]]:
    """What was broken, each against none."""
    counted = {
        "chaos_committed_steps_lost": sum(len(life.lost) for life in lives),
        "chaos_other_broken_promises": sum(len(life.broken) for life in lives),
        "chaos_batches_skipped_repeated_or_other": found.batches,
        "chaos_steps_with_other_losses": found.losses,
        "chaos_exported_files_with_other_bytes": found.files,
    }
    return [claim(name, [float(number)], [1.0], "<=0", "the undisturbed run") for name, number in counted.items()]


def main() -> None:
    """Disturb, print a line per life and per claim, and write the numbers where `--json` says."""
    parser = options(__doc__, quick="20 kills, in about a minute", bench="50 kills")
    parser.add_argument("--kills", type=int, help="number of kills; 200, with --bench 50, with --quick 20")
    parser.add_argument("--seed", type=int, default=1, help="of the blows")
    asked = parser.parse_args()
    kills = asked.kills or {"quick": 20, "bench": 50, "full": 200}[asked.size]

    with tempfile.TemporaryDirectory(prefix="palimpsest-") as temporary:
        scratch = Path(temporary)
        steps = STEPS_PER_KILL * kills
        more = ("--train.placement", "replicated", "--adapter.kind", "monteclora")
        arguments = settings(make_inputs(scratch), steps, *more)
        straight = Run(folder=scratch / "straight", arguments=arguments)
        undisturbed = straight.live()
        print(f"undisturbed: {undisturbed}", flush=True)
        if not undisturbed.is_done:
            sys.exit("the undisturbed run failed")
        run = Run(folder=scratch / "killed", arguments=arguments)
        began = time.monotonic()
        lives: list[Life] = []
        for life in disturb(run, kills=kills, steps=steps, source=random.Random(asked.seed)):
            lives.append(life)
            print(f"{len(lives):4}  {sum(each.num_kills for each in lives):4} kills  {life}", flush=True)
        seconds = time.monotonic() - began
        found = compare(run, straight, is_same_world=True)

    done = sum(life.num_kills for life in lives)
    print(
        f"{done} kills in {len(lives)} lives of {statistics.median(life.seconds for life in lives):.1f} s, {seconds:.0f} s in all"
    )
    for text in found.texts:
        print(text)
    if done < kills:
        print(f"the run was over after {done} of {kills} kills")
    claims = claims_of(lives, found)
    show(claims)
    if asked.json:
        content = {
            "settings": {"kills": kills, "seed": asked.seed, "steps": steps},
            "kills": done, "seconds_of_lives": seconds, "lives": [life.as_dict() for life in lives], "claims": claims,
        }  # fmt: skip
        write_json(asked.json, asked.size, content)


if __name__ == "__main__":
    main()
