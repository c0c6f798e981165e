"""`python -m launch plan RECIPE`: from arguments to a printed plan, or to every problem at once."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from launch.plan import cluster as known
from launch.plan.cluster import GPUS, Cluster, memory_of
from launch.plan.costs import Costs
from launch.plan.goodput import Failures
from launch.plan.options import Work, enough_nodes, enough_sharing, options, recommend, short_enough
from launch.plan.report import Plan, print_plan, to_json
from launch.plan.shapes import SHAPES, PlanError, known_shape, shape_of, shape_problems
from training.config import Config, Kind
from training.costs.fitting import setup_of
from training.costs.flops import peak_flops
from training.costs.memory import GiB, ZeroOptions
from training.costs.shape import Shape, adapter_problems
from training.ds_json import read_ds_config
from training.length import is_length_known, resolve
from training.recipe import ConfigError, load_config

KINDS: tuple[Kind, ...] = ("none", "lora", "monteclora")
DS_CONFIG = Path(__file__).resolve().parents[2] / "ds_configs" / "zero3.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("recipe", type=Path, help="TOML file of the run")
    parser.add_argument("--nodes", type=int, default=1, help="number of machines (default 1)")
    parser.add_argument("--gpus", type=int, default=8, help="GPUs of each machine (default 8)")
    parser.add_argument("--ranks", type=int, help="GPUs altogether, instead of --nodes")
    parser.add_argument(
        "--gpu", type=gpu_name, default="H100", help=f"{', '.join(GPUS)} (default H100), or any name with the next four"
    )
    parser.add_argument("--gpu-memory", type=float, help="GB of one GPU")
    parser.add_argument("--host-memory", type=float, help="GiB of memory of one machine (default: enough)")
    parser.add_argument("--flops", type=float, help="dense bf16 TFLOP/s of one GPU, as its vendor says")
    parser.add_argument("--bandwidth", type=float, default=400, help="Gb/s per GPU between machines (default 400)")
    parser.add_argument("--intra-bandwidth", type=float, help="GB/s of an all-gather inside a machine")
    parser.add_argument(
        "--storage-bandwidth",
        type=float,
        default=1,
        help="GB/s of a machine writing a checkpoint, and reading it back (default 1)",
    )
    parser.add_argument("--mtbf", type=float, default=5000, help="hours between failures of one machine (default 5000)")
    parser.add_argument("--checkpoint-every", type=int, help="steps between checkpoints (default: the recipe's)")
    parser.add_argument("--restart-minutes", type=float, default=5, help="from a failure to the next step (default 5)")
    parser.add_argument("--shape", choices=SHAPES, help="of the model, when its base is not on this machine")
    parser.add_argument(
        "--ds_config", type=Path, default=DS_CONFIG, help="DeepSpeed JSON (default ds_configs/zero3.json)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--table", action="store_true", help="print the table of docs/engine.md: 7B, 13B, 70B on 8 to 1,024 GPUs"
    )


def gpu_name(text: str) -> str:
    """The GPU as the tables spell it, or the text of one that they don't have."""
    return next((name for name in GPUS if name.lower() == text.lower()), text)


def cluster_of(chosen: argparse.Namespace) -> Cluster:
    """The machines that the options describe.

    Raises:
        ConfigError: every option that is out of range.
    """
    problems = list(_problems(chosen))
    if problems:
        raise ConfigError(problems)
    memory, inside = GPUS.get(chosen.gpu, (0, 0))
    flops = chosen.flops * 1e12 if chosen.flops else peak_flops(chosen.gpu)
    assert flops is not None
    nodes, gpus = chosen.nodes, chosen.gpus
    if chosen.ranks is not None:
        gpus = min(gpus, chosen.ranks)
        nodes = chosen.ranks // gpus
    return Cluster(
        nodes=nodes, gpus_per_node=gpus, gpu=chosen.gpu, memory_bytes=memory_of(chosen.gpu_memory or memory),
        peak_flops=flops, between=chosen.bandwidth * 1e9 / 8, inside=(chosen.intra_bandwidth or inside) * 1e9,
        host_memory_bytes=None if chosen.host_memory is None else chosen.host_memory * GiB,
    )  # fmt: skip


def _problems(chosen: argparse.Namespace) -> Iterator[str]:
    for name in ("nodes", "gpus", "ranks", "gpu_memory", "host_memory", "flops", "bandwidth", "intra_bandwidth",
                 "storage_bandwidth", "mtbf", "checkpoint_every"):  # fmt: skip
        value, option = getattr(chosen, name), f"--{name.replace('_', '-')}"
        if value is None:
            continue
        if not math.isfinite(value):
            yield f"{option} {value:g}: must be a finite number"
        elif value <= 0:
            yield f"{option} {value:g}: must be {'at least 1' if isinstance(value, int) else 'greater than 0'}"
    if not math.isfinite(chosen.restart_minutes):
        yield f"--restart-minutes {chosen.restart_minutes:g}: must be a finite number"
    elif chosen.restart_minutes < 0:
        yield f"--restart-minutes {chosen.restart_minutes:g}: must not be negative"
    if chosen.ranks is not None and chosen.nodes != 1:
        yield "--ranks: is the number of all GPUs, and --nodes is given too; use --nodes with --gpus, or --ranks alone"
    if chosen.ranks is not None and chosen.gpus > 0 and chosen.ranks > chosen.gpus and chosen.ranks % chosen.gpus:
        yield f"--ranks {chosen.ranks}: is no whole number of machines of {chosen.gpus} GPUs; say --gpus, too"
    if chosen.gpu not in GPUS:
        missing = [option for option, value in (("--gpu-memory", chosen.gpu_memory), ("--intra-bandwidth", chosen.intra_bandwidth))
                   if value is None]  # fmt: skip
        if chosen.flops is None and peak_flops(chosen.gpu) is None:
            missing.append("--flops")
        if missing:
            yield f"--gpu {chosen.gpu}: is none of {', '.join(GPUS)}; give {', '.join(missing)}, too"


def run(chosen: argparse.Namespace, overrides: list[str]) -> int:
    """Print the plan and return the exit code: 2 when something is wrong, 1 when nothing fits, else 0."""
    try:
        problems: list[str] = []
        try:
            cluster = cluster_of(chosen)
        except ConfigError as error:
            problems, cluster = error.problems, None
        config, ds_config = _load(chosen, overrides, cluster, problems)
        assert cluster is not None
        if chosen.table:
            from launch.plan.table import print_table

            print_table(config, ds_config)
            return 0
        shape = known_shape(chosen.shape) if chosen.shape else shape_of(config)
        plan = plan_of(config, shape, cluster, ds_config, chosen)
    except (ConfigError, PlanError) as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 2
    if chosen.json:
        print(json.dumps(to_json(plan), indent=2))
    else:
        print_plan(plan, chosen.recipe.name)
    return 1 if plan.chosen is None else 0


def _load(
    chosen: argparse.Namespace, overrides: list[str], cluster: Cluster | None, problems: list[str]
) -> tuple[Config, ZeroOptions]:
    ds_config, wrong = read_ds_config(chosen.ds_config)
    if not any(each.startswith(("--train.micro_batch_rows", "--train.micro-batch-rows")) for each in overrides):
        # It is what is looked for, and the recipe's may be none that these GPUs could have.
        overrides = [*overrides, "--train.micro_batch_rows", "1"]
    if chosen.shape:
        # It stands in for the base, whose own sizes are then not the ones to check.
        overrides = [*overrides, "--model.base", chosen.shape]
    ranks = cluster.ranks if cluster is not None and not chosen.table else None
    config = load_config(
        chosen.recipe, overrides, world_size=ranks, more_problems=[*problems, *wrong], needs_files=False,
        also_check=lambda config: list(shape_problems(chosen.shape, config)) if chosen.shape else [],
    )  # fmt: skip
    if not is_length_known(config):
        raise PlanError(
            "train.epochs: how many steps that is depends on the data; give --train.steps or --train.tokens"
        )
    return resolve(config, None), ZeroOptions.from_ds_config(ds_config)


def plan_of(config: Config, shape: Shape, cluster: Cluster, zero: ZeroOptions, chosen: argparse.Namespace) -> Plan:
    """Everything there is to say about a configuration on a cluster.

    Raises:
        PlanError: the model does not fit the adapter's settings.
    """
    work = work_of(config, shape, config.adapter.kind, zero)
    found = options(work, cluster)
    best = recommend(found, cluster)
    others = {kind: _other(config, shape, kind, cluster, zero) for kind in KINDS if kind != config.adapter.kind}
    larger = sequence_parallel = seq_len = None
    if best is None:
        rows, shared = config.train.global_batch_rows, config.train.sequence_parallel
        larger = enough_nodes(work, cluster, lambda ranks: rows % (ranks // shared) == 0)
        seq_len = short_enough(work, cluster)
        can_cut = not config.hidden_key.enabled and (config.adapter.kind == "none" or config.adapter.dropout == 0)
        sequence_parallel = enough_sharing(work, cluster) if can_cut else None
    every = chosen.checkpoint_every or config.checkpoint.every_steps
    return Plan(
        config=config, cluster=cluster, work=work, found=found, chosen=best, others=others, larger=larger,
        sequence_parallel=sequence_parallel, seq_len=seq_len, checkpoint_every=every,
        failures=None if best is None else failures_of(best, cluster, config, chosen),
    )  # fmt: skip


def work_of(config: Config, shape: Shape, kind: Kind, zero: ZeroOptions) -> Work:
    """A step of the configuration with this `adapter.kind`, and with AdamW where an adapter can't have Muon.

    Raises:
        PlanError: the model does not fit the adapter's settings.
    """
    optim = config.optim
    if kind != "none" and optim.kind == "muon":
        optim = dataclasses.replace(optim, kind="adamw")
    config = dataclasses.replace(config, adapter=dataclasses.replace(config.adapter, kind=kind), optim=optim)
    adapter = config.adapter.build()
    if adapter is not None and (problems := list(adapter_problems(adapter, shape))):
        raise PlanError("; ".join(f"adapter.{name} {message}" for name, message in problems))
    setup = setup_of(config, shape, ranks=1, ranks_per_node=1, ds_config={})
    forwards, backwards = config.hidden_key.passes()
    return Work(
        setup=dataclasses.replace(setup, zero=zero), rows_per_step=config.train.global_batch_rows,
        forwards=forwards, backwards=backwards,
    )  # fmt: skip


def _other(config: Config, shape: Shape, kind: Kind, cluster: Cluster, zero: ZeroOptions) -> Costs | None:
    try:
        work = work_of(config, shape, kind, zero)
    except PlanError:
        return None
    return recommend(options(work, cluster), cluster)


def failures_of(best: Costs, cluster: Cluster, config: Config, chosen: argparse.Namespace) -> Failures:
    """What a failure and a checkpoint cost the run.

    A checkpoint is complete once it was written and, with checkpoint.read_back, read again, which takes as long: in each pass a
    node's bytes go through its storage and every rank hashes its own part, one after the other. A copy that is made in the
    background hides behind the next forward and backward, which change nothing of what is copied; where the optimizer is in
    host memory, the host copies before it goes on. Without the background training waits for everything.
    """
    of_rank, of_node = best.checkpoint_bytes / cluster.ranks, best.checkpoint_bytes / cluster.nodes
    passes = 2 if config.checkpoint.read_back else 1
    write = passes * (of_node / (chosen.storage_bandwidth * 1e9) + of_rank / known.HASH_RATE) + known.CHECKPOINT_SECONDS
    hidden, is_behind = 0.0, best.setup.background_saves
    if is_behind and best.setup.placement != "zero3_offload":
        copy = of_rank / known.COPY_RATE
        hidden = min(copy, best.compute_seconds)
    else:
        copy = of_rank / known.HOST_COPY_RATE
    return Failures(
        between=chosen.mtbf * 3600 / cluster.nodes, restart=60 * chosen.restart_minutes,
        stall=known.STALL_SECONDS + copy - hidden + (0.0 if is_behind else write),
        write=hidden + write if is_behind else 0.0,
    )  # fmt: skip
