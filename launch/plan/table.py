"""The table of docs/engine.md: what to take, and how long it takes, for three models on 8 to 1,024 GPUs."""

from __future__ import annotations

import dataclasses

from launch.plan.cluster import GPUS, Cluster, memory_of
from launch.plan.options import options, recommend
from launch.plan.shapes import known_shape
from training.config import Config, Kind
from training.costs.flops import peak_flops
from training.costs.memory import GiB, ZeroOptions

MODELS = {"llama-2-7b": "7B", "llama-2-13b": "13B", "llama-2-70b": "70B"}
NODES = (1, 8, 32, 128)
METHODS: dict[Kind, str] = {"none": "full", "lora": "LoRA"}


def table_lines(config: Config, zero: ZeroOptions) -> list[str]:
    """Lines of a Markdown table, for the configuration's tokens on nodes of 8 H100 with 400 Gb/s per GPU.

    A step has the configuration's rows, or the next multiple of the GPUs.
    """
    from launch.plan.command import work_of

    gpu = "H100"
    memory, inside = GPUS[gpu]
    tokens = config.train.steps * config.train.global_batch_rows * config.data.seq_len
    lines = [
        "| model | method | GPUs | rows per step | placement | micro-batch | recomputed layers | GiB per GPU | tokens/s per GPU | hours |",
        "|---|---|--:|--:|---|--:|--:|--:|--:|--:|",
    ]
    for model, label in MODELS.items():
        shape = known_shape(model)
        for kind, method in METHODS.items():
            for nodes in NODES:
                cluster = Cluster(
                    nodes=nodes, gpus_per_node=8, gpu=gpu, memory_bytes=memory_of(memory), between=50e9,
                    peak_flops=peak_flops(gpu) or 0.0, inside=inside * 1e9,
                )  # fmt: skip
                rows = cluster.ranks * -(-config.train.global_batch_rows // cluster.ranks)
                work = dataclasses.replace(work_of(config, shape, kind, zero), rows_per_step=rows)
                best = recommend(options(work, cluster), cluster)
                start = f"| {label} | {method} | {cluster.ranks:,} | {rows:,} |"
                if best is None:
                    lines.append(f"{start} nothing fits | | | | | |")
                    continue
                hours = tokens / best.tokens_per_second / 3600
                host = f", {best.host_bytes / GiB:,.0f} GiB of host memory per node" if best.memory.host else ""
                lines.append(
                    f"{start} {best.setup.placement}{host} | {best.setup.micro_batch_rows} | {best.setup.recomputed_layers} of "
                    f"{shape.layers} | {best.memory.total / GiB:.0f} | {best.tokens_per_second_per_gpu:,.0f} | {hours:,.{1 if hours < 10 else 0}f} |"
                )
    return lines


def print_table(config: Config, zero: ZeroOptions) -> None:
    """Print it."""
    print("\n".join(table_lines(config, zero)))
