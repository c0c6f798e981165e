"""All ranks must train the same: what they are told to do is compared before anything is loaded."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from typing import Any

from training.config import Config, to_dict
from training.ranks.distributed import gather, init_distributed
from training.recipe import ConfigError
from training.record.run_record import flatten, versions
from training.world import World

SHOWN = 8
"""Differences that are named."""

PATIENCE = timedelta(seconds=15)
"""How long a rank that can't start tries to reach the others: less than launchers wait for the last rank to end."""


def refuse_problems(problem: Exception | None, world: World) -> None:
    """Refuse on all ranks what one of them, on its own node, can't do (a collective).

    Raises:
        ConfigError: with the problems of the first rank that has any.
    """
    ours = None if problem is None else problem.problems if isinstance(problem, ConfigError) else [str(problem)]
    for rank, problems in enumerate(gather(ours, world)):
        if problems is not None:
            raise ConfigError(problems if rank == 0 else [f"rank {rank}: {text}" for text in problems]) from problem


def tell_the_others(problem: Exception, world: World) -> bool:
    """From a rank that can't start, tell those that wait for it, of which the first will say it; return whether they heard.

    When the first rank has problems of its own, it is not there.
    """
    try:
        init_distributed(world, patience=PATIENCE)
        refuse_problems(problem, world)
    except ConfigError:
        return True
    except Exception:
        # Nobody answers, in one of the ways that torch has to say so.
        return False
    return True


def refuse_disagreement(config: Config, ds_config: dict[str, Any], world: World) -> None:
    """Compare the ranks' configurations, DeepSpeed JSONs and versions of what computes (a collective).

    Another environment on one node, or a recipe on its own disk, would train something that nobody asked for, or hang.

    Raises:
        ConfigError: on all ranks, naming the rank and what differs.
    """
    ours: dict[str, Any] = {
        **flatten(to_dict(config)), **flatten(ds_config, "--ds_config: "), **flatten(versions(), "version of "),
    }  # fmt: skip
    if config.train.placement == "zero3_hpz":
        # Its copies are shared out over the ranks of a node.
        ours["ranks on a node"] = world.local_size
    # Most often they agree, and a digest says so.
    digests = gather(hashlib.sha256(json.dumps(ours, sort_keys=True).encode()).hexdigest(), world)
    if len(set(digests)) == 1:
        return
    all_ranks = gather(ours, world)
    first = all_ranks[0]
    problems = [
        f"{name}: {json.dumps(of_rank.get(name))} on rank {rank}, {json.dumps(first.get(name))} on rank 0; start all "
        "ranks with the same recipe, options and software"
        for rank, of_rank in enumerate(all_ranks)
        # A setting of the recipe decides what is in the others.
        for name in sorted(first.keys() | of_rank.keys(), key=lambda name: (" " in name, name))
        if of_rank.get(name) != first.get(name)
    ]
    more = [f"and {len(problems) - SHOWN} more differences between ranks"] if len(problems) > SHOWN else []
    raise ConfigError([*problems[:SHOWN], *more])
