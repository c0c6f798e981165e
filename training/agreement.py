"""All ranks must train the same: what they are told to do is compared before anything is loaded."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from training.config import Config, to_dict
from training.distributed import gather
from training.recipe import ConfigError
from training.record import flatten, versions
from training.world import World

SHOWN = 8
"""Differences that are named."""


def refuse_disagreement(config: Config, ds_config: dict[str, Any], world: World) -> None:
    """Compare the ranks' configurations, DeepSpeed JSONs and versions of what computes (a collective).

    Another environment on one node, or a recipe on its own disk, would train something that nobody asked for, or hang.

    Raises:
        ConfigError: on all ranks, naming the rank and what differs.
    """
    ours = {**flatten(to_dict(config)), **flatten(ds_config, "--ds_config: "), **flatten(versions(), "version of ")}
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
        for name in sorted(first.keys() | of_rank.keys())
        if of_rank.get(name) != first.get(name)
    ]
    more = [f"and {len(problems) - SHOWN} more differences between ranks"] if len(problems) > SHOWN else []
    raise ConfigError([*problems[:SHOWN], *more])
