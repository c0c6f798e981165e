"""The configuration as one rank reads it, and what the plan makes of it.

A file that is missing on one node is that node's failure; what is wrong on all nodes is wrong with the configuration.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.plan.shapes import PlanError, shape_of
from launch.preflight.verdict import Judgement, fail
from training.config import Config
from training.costs.fitting import setup_of
from training.costs.memory import checkpoint_bytes, copy_bytes
from training.ds_json import read_ds_config
from training.recipe import ConfigError, load_config


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What a rank makes of the recipe."""

    config: Config | None
    """None where it can't be read, even without the files that it names."""
    ds_config: dict[str, Any]
    problems: list[str]
    """As training would report them on this node."""


def read(recipe: Path, ds_config: Path | None, overrides: Sequence[str], world_size: int) -> Configuration:
    """Read everything as training does."""
    content, wrong = read_ds_config(ds_config) if ds_config is not None else ({}, [])
    try:
        config = load_config(recipe, overrides, world_size=world_size, more_problems=wrong)
    except ConfigError as error:
        try:
            config = load_config(recipe, overrides, world_size=world_size, needs_files=False)
        except ConfigError:
            return Configuration(config=None, ds_config=content, problems=error.problems)
        return Configuration(config=config, ds_config=content, problems=error.problems)
    return Configuration(config=config, ds_config=content, problems=[])


def is_wrong(problems: Mapping[int, Sequence[str]]) -> bool:
    """Whether all ranks have the same problems, so that it isn't a node's."""
    first = next(iter(problems.values()))
    return bool(first) and all(list(each) == list(first) for each in problems.values())


def judge(problems: Mapping[str, Sequence[str]]) -> Judgement:
    """What is wrong with the configuration on some nodes, and not on all of them."""
    findings = [fail(problem, node) for node, each in problems.items() for problem in each]
    line = f"read on {sum(not each for each in problems.values())} of {len(problems)} node(s)"
    return Judgement(check="recipe", line=line, findings=findings)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What checkpoints take."""

    checkpoint_bytes: int | None = None
    """Of one, on disk."""
    copy_bytes: float | None = None
    """Of the copy in host memory that each rank writes it from."""
    unknown: str = ""
    """Why nothing is known."""


def sizes_of(configuration: Configuration, ranks: int, ranks_per_node: int) -> Sizes:
    """Sizes as `launch plan` computes them."""
    config = configuration.config
    if config is None:
        return Sizes(unknown="the recipe can't be read")
    try:
        shape = shape_of(config)
    except PlanError:
        return Sizes(unknown=f"{config.model.base} has no config.json that can be read")
    setup = setup_of(config, shape, ranks=ranks, ranks_per_node=ranks_per_node, ds_config=configuration.ds_config,
                     device="cpu" if os.environ.get("DS_ACCELERATOR") == "cpu" else "cuda")  # fmt: skip
    return Sizes(checkpoint_bytes=checkpoint_bytes(setup), copy_bytes=copy_bytes(setup))
