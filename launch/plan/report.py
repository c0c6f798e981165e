"""A plan as tables, or as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from launch.plan import cluster as known
from launch.plan.cluster import Cluster
from launch.plan.costs import Costs
from launch.plan.goodput import Failures
from launch.plan.options import Work, best_per_placement, fits, largest_micro_batch
from launch.plan.units import binary, decimal, duration, gpu_hours
from training.config import Config, Kind
from training.costs.memory import MARGIN, PARTS, RESERVED_BYTES, GiB, usable_bytes

NAMES = {"none": "full finetuning", "lora": "LoRA", "monteclora": "MonteCLoRA"}
WARN_HOST_BYTES = 1024 * GiB
"""Host memory of a node from which on it is not taken for granted."""
LEAST_GOODPUT = 0.01
"""Part of the time that counts from which on it makes sense to say when the run will be done."""
LONG_HOURS = 1.0
"""Hours of a run from which on failures and checkpoints are worth a word."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What there is to say about a recipe on a cluster."""

    config: Config
    cluster: Cluster
    work: Work
    found: list[Costs]
    """Of every placement and micro-batch."""
    chosen: Costs | None
    """The recommended one; None when nothing fits."""
    others: dict[Kind, Costs | None]
    """What would be recommended with other values of adapter.kind."""
    larger: Cluster | None
    """When nothing fits, the cluster of more nodes on which something does."""
    sequence_parallel: int | None
    """When nothing fits, the ranks per row with which something does."""
    seq_len: int | None
    """When nothing fits, the tokens of shorter rows with which something does."""
    checkpoint_every: int
    """Steps."""
    failures: Failures | None
    """None when nothing fits."""

    @property
    def overrides(self) -> str:
        """What to add to the command that starts the run."""
        assert self.chosen is not None
        setup = self.chosen.setup
        return (
            f"--train.placement {setup.placement} --train.micro_batch_rows {setup.micro_batch_rows} "
            f"--model.activation_checkpointing {setup.recomputed_layers or 'off'}"
        )

    @property
    def goodput(self) -> float:
        """Part of the time in which steps are taken that count."""
        assert self.chosen is not None
        assert self.failures is not None
        return self.failures.goodput(self.checkpoint_every * self.chosen.step_seconds)

    @property
    def hours(self) -> float:
        """Of the whole run, without failures."""
        assert self.chosen is not None
        return self.config.train.steps * self.chosen.step_seconds / 3600


def print_plan(plan: Plan, recipe: str) -> None:
    """Print tables and the recommendation."""
    console = Console(highlight=False)
    cluster, model, work = plan.cluster, plan.work.setup.model, plan.work
    console.print(
        f"[bold]{recipe}[/bold]: {NAMES[plan.config.adapter.kind]}, {model.base_size + model.adapter_size:,} parameters, "
        f"{model.size:,} of them train.\n{cluster.nodes} node(s) of {cluster.gpus_per_node} {cluster.gpu} with "
        f"{cluster.memory_bytes / GiB:g} GB, of which a run may use {usable_bytes(cluster.memory_bytes) / GiB:.1f} GiB. "
        f"{work.rows_per_step} rows of {work.setup.seq_len:,} tokens per step."
    )
    if work.forwards > 1:
        console.print(f"HiddenKey: {work.forwards} forward and {work.backwards} backward pass(es) over every row.")
    console.print()
    console.print(_memory_table(plan))
    if cluster.host_memory_bytes is not None or max(costs.host_bytes for costs in plan.found) >= GiB:
        console.print(_host_memory(plan))
    if plan.chosen is not None:
        console.print()
        console.print(_step_table(plan))
        console.print()
    for line in _conclusion(plan):
        console.print(line)


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("placement", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _memory_table(plan: Plan) -> Table:
    columns = ("rows", "again", "weights", "grads", "states", "activ.", "other", "total", "free")
    is_small = max(costs.memory.total for costs in plan.found) < GiB
    unit, name, digits = (2**20, "MiB", 0) if is_small else (GiB, "GiB", 1)
    table = _table(f"{name} per GPU, by rows of a micro-batch, computing as few layers again as fit", columns)
    for placement in dict.fromkeys(costs.setup.placement for costs in plan.found):
        own = [costs for costs in plan.found if costs.setup.placement == placement]
        # Larger micro-batches than the first that doesn't fit don't either.
        shown = [costs for costs in own if fits(costs, plan.cluster)] or own[:1]
        for costs in shown:
            memory, setup = costs.memory, costs.setup
            parts = (
                memory.weights + memory.adapter, memory.gradients, memory.masters + memory.optimizer,
                memory.activations, memory.head + memory.buffers, memory.total,
            )  # fmt: skip
            free = usable_bytes(plan.cluster.memory_bytes) - memory.total
            table.add_row(
                placement if costs is shown[0] else "", str(setup.micro_batch_rows), str(setup.recomputed_layers),
                *(f"{part / unit:,.{digits}f}" for part in parts),
                f"{free / unit:,.{digits}f}" if free >= 0 else f"[red]{free / unit:,.{digits}f}[/red]",
                style="bold" if costs is plan.chosen else None, end_section=costs is shown[-1],
            )  # fmt: skip
    return table


def _host_memory(plan: Plan) -> str:
    parts = []
    for costs in best_per_placement(plan.found, plan.cluster):
        part = f"{costs.setup.placement} {costs.host_bytes / GiB:,.0f}"
        parts.append(part if costs.host_bytes <= plan.cluster.usable_host_bytes else f"[red]{part}[/red]")
    has = ""
    if plan.cluster.host_memory_bytes is not None:
        has = f" (a run may use {plan.cluster.usable_host_bytes / GiB:,.0f})"
    what = "what is offloaded and a checkpoint's copy" if plan.work.setup.background_saves else "what is offloaded"
    return f"\nGiB of host memory per node{has}, {what}: {', '.join(parts)}."


def _step_table(plan: Plan) -> Table:
    columns = ("rows", "sent", "comp.", "comm.", "step", "floor", "tok/s", "MFU", "run")
    shown = [costs for costs in best_per_placement(plan.found, plan.cluster) if fits(costs, plan.cluster)]
    scale, unit = (1, "seconds") if max(costs.step_seconds for costs in shown) >= 0.1 else (1e3, "milliseconds")
    table = _table(f"A step in {unit} and per GPU, each placement at its best", columns)
    for costs in shown:
        mfu = costs.flops / costs.setup.ranks / costs.step_seconds / plan.cluster.peak_flops
        table.add_row(
            costs.setup.placement, str(costs.setup.micro_batch_rows), decimal(costs.wire_bytes),
            *(f"{scale * seconds:.2f}" for seconds in (
                costs.compute_seconds, costs.network_seconds, costs.step_seconds, costs.floor_seconds,
            )),
            f"{costs.tokens_per_second_per_gpu:,.0f}", f"{mfu:.0%}", duration(plan.config.train.steps * costs.step_seconds),
            style="bold" if costs is plan.chosen else None,
        )  # fmt: skip
    return table


def _conclusion(plan: Plan) -> Iterator[str]:
    if plan.chosen is None or plan.failures is None:
        yield from nothing_fits(plan)
        return
    chosen, cluster, config = plan.chosen, plan.cluster, plan.config
    per_token = chosen.flops / chosen.tokens / 1e9
    yield (
        f"FLOPs per step: {chosen.flops:.3g} ({per_token:,.{1 if per_token >= 1 else 3}f} GFLOP per token). "
        f"Largest micro-batch that fits: {largest_micro_batch(plan.found, cluster)} row(s). "
        f"A checkpoint: {decimal(chosen.checkpoint_bytes)}."
    )
    for kind, costs in plan.others.items():
        with_kind = f"With adapter.kind {kind} ({NAMES[kind]})"
        if costs is None:
            yield f"{with_kind}: nothing fits."
            continue
        with_kind += "".join(f" and {name} {value}" for name, value in _needed(plan, kind, costs).items())
        yield (
            f"{with_kind}: {costs.setup.placement}, {costs.setup.micro_batch_rows} row(s), "
            f"{binary(costs.memory.total)}, {costs.tokens_per_second_per_gpu:,.0f} tok/s/GPU."
        )
    yield ""
    yield f"[bold]Take {plan.overrides}[/bold]"
    yield _reason(plan)
    if cluster.host_memory_bytes is None and (chosen.memory.host or chosen.host_bytes > WARN_HOST_BYTES):
        yield f"It needs {chosen.host_bytes / GiB:,.0f} GiB of host memory per node."
        if chosen.host_bytes > WARN_HOST_BYTES:
            yield "[yellow]That is more than 1 TiB: see what the nodes have, and give it as --host-memory.[/yellow]"
    tokens = config.train.steps * chosen.tokens
    yield (
        f"{config.train.steps:,} steps, {tokens:,} tokens: {chosen.tokens_per_second:,.0f} tokens/s, "
        f"{duration(3600 * plan.hours)}, {gpu_hours(plan.hours * cluster.ranks)} without failures."
    )
    if plan.hours < LONG_HOURS:
        return
    yield from _with_failures(plan, chosen)


def _with_failures(plan: Plan, chosen: Costs) -> Iterator[str]:
    failures, cluster = plan.failures, plan.cluster
    assert failures is not None
    every = plan.checkpoint_every * chosen.step_seconds
    best_steps = math.ceil(failures.best_interval() / chosen.step_seconds)
    best = best_steps * chosen.step_seconds
    behind = f" and is complete {duration(failures.write)} later, while training goes on" if failures.write else ""
    yield (
        f"A checkpoint holds the run up for {duration(failures.stall)}{behind}. With one every {plan.checkpoint_every:,} steps "
        f"({duration(every)}) and a failure every {duration(failures.between)}, {plan.goodput:.2%} of the time counts"
        + (
            f": {duration(3600 * plan.hours / plan.goodput)}, {gpu_hours(plan.hours / plan.goodput * cluster.ranks)}."
            if plan.goodput >= LEAST_GOODPUT
            else "."
        )
        + f" Best: every {best_steps:,} steps ({duration(best)}), {failures.goodput(best):.2%}."
    )
    if every < failures.write:
        yield (
            f"[yellow]The next checkpoint is due before the last one is complete, and training waits for it: "
            f"{duration(failures.write - every)} every time.[/yellow]"
        )


def _reason(plan: Plan) -> str:
    assert plan.chosen is not None
    chosen, parts = plan.chosen, []
    for costs in best_per_placement(plan.found, plan.cluster):
        if costs is chosen:
            continue
        if not fits(costs, plan.cluster):
            parts.append(f"{costs.setup.placement} lacks {lacking(costs, plan.cluster)}")
            continue
        ratio = costs.tokens_per_second / chosen.tokens_per_second - 1
        speed = "as fast" if abs(ratio) < 0.005 else f"{abs(ratio):.0%} {'faster' if ratio > 0 else 'slower'}"
        parts.append(f"{costs.setup.placement} is {speed} and sends {decimal(costs.wire_bytes)}")
    return (
        f"It is the fastest that fits, or as fast and simpler: {decimal(chosen.wire_bytes)} sent per GPU and step, "
        f"{chosen.setup.recomputed_layers} of {chosen.setup.model.shape.layers} layers computed again. {'; '.join(parts)}."
    )


def lacking(costs: Costs, cluster: Cluster) -> str:
    """By how much something doesn't fit."""
    on_gpu = costs.memory.total - usable_bytes(cluster.memory_bytes)
    on_host = costs.host_bytes - cluster.usable_host_bytes
    parts = [f"{on_gpu / GiB:.1f} GiB per GPU"] if on_gpu > 0 else []
    if on_host > 0:
        parts.append(f"{on_host / GiB:,.1f} GiB of host memory per node")
    return " and ".join(parts)


def nothing_fits(plan: Plan) -> Iterator[str]:
    """Lines, with markup, of what is lacking and what would fit, of a plan in which nothing does."""
    cluster = plan.cluster
    yield "\n[bold red]Nothing fits.[/bold red] One row per micro-batch and all layers recomputed:"
    for costs in best_per_placement(plan.found, cluster):
        needs = f"needs {costs.memory.total / GiB:.1f} per GPU, {costs.host_bytes / GiB:,.1f} per node"
        yield f"  {costs.setup.placement} lacks {lacking(costs, cluster)} ({needs})"
    yield "What would fit:"
    ways = []
    if plan.larger is not None:
        ways.append(
            f"  {plan.larger.nodes} nodes, {plan.larger.ranks} GPUs (--nodes {plan.larger.nodes} --gpus {plan.larger.gpus_per_node})"
        )
    for kind, other in plan.others.items():
        if other is not None:
            more = "".join(f" --{name} {value}" for name, value in _needed(plan, kind, other).items())
            ways.append(f"  {NAMES[kind]}: --adapter.kind {kind}{more} --train.placement {other.setup.placement}")
    on_gpu = [costs for costs in plan.found if costs.memory.total <= usable_bytes(cluster.memory_bytes)]
    if any(costs.setup.ranks_per_node * costs.memory.host <= cluster.usable_host_bytes for costs in on_gpu):
        ways.append("  no copy of what is saved (--checkpoint.background false); training then waits for checkpoints")
    if with_host := [costs for costs in plan.found if costs.host_bytes <= cluster.usable_host_bytes]:
        smallest = min(with_host, key=lambda costs: costs.memory.total)
        needed = (smallest.memory.total + RESERVED_BYTES) / (1 - MARGIN) / GiB
        ways.append(f"  GPUs of {math.ceil(needed)} GB, with {smallest.setup.placement}")
    if on_gpu:
        smallest = min(on_gpu, key=lambda costs: costs.host_bytes)
        needed = smallest.host_bytes / (1 - known.HOST_MARGIN) / GiB
        ways.append(f"  nodes of {math.ceil(needed):,} GiB of host memory, with {smallest.setup.placement}")
    if plan.sequence_parallel is not None:
        ways.append(f"  more ranks per row (--train.sequence_parallel {plan.sequence_parallel})")
    if plan.seq_len is not None:
        ways.append(f"  shorter rows (--data.seq_len {plan.seq_len})")
    yield from ways


def _needed(plan: Plan, kind: Kind, costs: Costs) -> dict[str, str]:
    """Settings that another adapter.kind asks for beside itself."""
    needed = {}
    if costs.setup.optimizer != plan.config.optim.kind:
        needed["optim.kind"] = costs.setup.optimizer
    if kind != "none" and plan.config.train.sequence_parallel > 1 and plan.config.adapter.dropout > 0:
        needed["adapter.dropout"] = "0"
    return needed


def to_json(plan: Plan) -> dict[str, Any]:
    """Everything as plain values: bytes, seconds, FLOPs."""
    result: dict[str, Any] = {
        "schema": 1,
        "cluster": dataclasses.asdict(plan.cluster),
        "parameters": {"total": plan.work.setup.model.base_size + plan.work.setup.model.adapter_size,
                       "trained": plan.work.setup.model.size},
        "usable_bytes": usable_bytes(plan.cluster.memory_bytes),
        "options": [_costs_json(costs, plan) for costs in plan.found],
        "recommended": None,
        "constants": {"efficiency": known.EFFICIENCY, "exposed": known.EXPOSED, "per_doubling": known.DOUBLING},
    }  # fmt: skip
    if plan.chosen is not None and plan.failures is not None:
        result["recommended"] = {
            **_costs_json(plan.chosen, plan),
            "overrides": plan.overrides.split(),
            "steps": plan.config.train.steps,
            "hours": plan.hours,
            "gpu_hours": plan.hours * plan.cluster.ranks,
            "goodput": plan.goodput,
            "checkpoint_bytes": plan.chosen.checkpoint_bytes,
            "checkpoint_stall_seconds": plan.failures.stall,
            "checkpoint_write_seconds": plan.failures.write,
            "checkpoint_every_steps": plan.checkpoint_every,
            "best_checkpoint_seconds": plan.failures.best_interval(),
        }
    return result


def _costs_json(costs: Costs, plan: Plan) -> dict[str, Any]:
    setup = costs.setup
    return {
        "placement": setup.placement, "micro_batch_rows": setup.micro_batch_rows,
        "recomputed_layers": setup.recomputed_layers, "fits": fits(costs, plan.cluster),
        "memory_bytes": {name: getattr(costs.memory, name) for name in (*PARTS, "host", "total")},
        "host_bytes_per_node": costs.host_bytes,
        "flops": costs.flops, "wire_bytes": costs.wire_bytes, "compute_seconds": costs.compute_seconds,
        "network_seconds": costs.network_seconds, "update_seconds": costs.update_seconds,
        "step_seconds": costs.step_seconds, "floor_seconds": costs.floor_seconds,
        "tokens_per_second": costs.tokens_per_second,
        "tokens_per_second_per_gpu": costs.tokens_per_second_per_gpu,
    }  # fmt: skip
