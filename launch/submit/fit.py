"""Whether a run fits the GPUs it asks for, as `python -m launch plan` says."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.text import Text

from launch.plan.cluster import GPUS
from launch.plan.command import add_arguments, cluster_of, gpu_name, plan_of
from launch.plan.options import fits
from launch.plan.report import lacking, nothing_fits
from launch.plan.shapes import PlanError, shape_of
from training.config import Config
from training.costs.memory import ZeroOptions
from training.ds_json import read_ds_config


def fit_problems(config: Config, recipe: Path, *, gpu: str, nodes: int, gpus: int, ds_config: Path | None) -> list[str]:
    """Why it doesn't fit: nothing would, or not with its own placement and micro-batch."""
    gpu = gpu_name(gpu)
    if gpu not in GPUS:
        return [f"--gpu {gpu}: must be one of {', '.join(GPUS)}; python -m launch plan takes figures of others"]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    chosen = parser.parse_args([f"--nodes={nodes}", f"--gpus={gpus}", f"--gpu={gpu}", "--", str(recipe)])
    zero = ZeroOptions.from_ds_config(read_ds_config(ds_config)[0] if ds_config is not None else {})
    try:
        plan = plan_of(config, shape_of(config), cluster_of(chosen), zero, chosen)
    except PlanError as error:
        return [
            f"--gpu {gpu}: whether it fits can't be told: {error} (options of python -m launch plan; leave --gpu out here)"
        ]
    asked = f"--gpu {gpu}: {nodes} x {gpus}"
    if plan.chosen is None:
        lines = [Text.from_markup(line).plain.strip("\n") for line in nothing_fits(plan)]
        return [f"{asked}: " + "\n    ".join(lines)]
    setting = config.train.placement, config.train.micro_batch_rows
    own = next((each for each in plan.found if (each.setup.placement, each.setup.micro_batch_rows) == setting), None)
    if own is None or fits(own, plan.cluster):
        return []
    return [
        f"{asked}: train.placement {setting[0]} with train.micro_batch_rows {setting[1]} lacks {lacking(own, plan.cluster)}; "
        f"take {plan.overrides}"
    ]
