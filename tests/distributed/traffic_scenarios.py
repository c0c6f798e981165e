"""What ranks do in the tests of counted bytes."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from tests.distributed import scenarios
from tests.distributed.scenarios import Run, start
from training.model.build import count_parameters
from training.placements.zero3 import init_deepspeed
from training.watch.traffic import Traffic


def collectives() -> dict[str, Any]:
    """Bytes and calls by kind of one call of each collective, of fp32 vectors: 100 elements are a rank's part, 200 the whole."""
    world = start()
    init_deepspeed(world, print)
    warnings.simplefilter("ignore", FutureWarning)  # of newer torch, about names that older torch needs
    part, whole = torch.zeros(100), torch.zeros(200)
    parts = [torch.zeros(100), torch.zeros(100)]
    alone = [dist.new_group([rank]) for rank in range(2)][world.rank]
    manager = dist.distributed_c10d._coalescing_manager

    def coalesced() -> None:
        with manager(async_ops=True) as together:
            dist.all_gather_into_tensor(whole, part)
            dist.all_gather_into_tensor(whole.clone(), part)
        together.wait()

    calls = {
        "all_gather": lambda: dist.all_gather(parts, part),
        "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(whole, part),
        "asynchronous": lambda: dist.all_gather_into_tensor(whole, part, async_op=True).wait(),
        "coalesced": coalesced,
        "all_reduce": lambda: dist.all_reduce(whole),
        "bf16": lambda: dist.all_reduce(whole.bfloat16()),
        "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(part, whole),
        "broadcast": lambda: dist.broadcast(whole, src=0),
        "all_to_all_single": lambda: dist.all_to_all_single(torch.zeros(200), whole),
        "alone": lambda: dist.all_reduce(whole, group=alone),
        "barrier": dist.barrier,
        "deepspeed all_reduce": lambda: deepspeed.comm.all_reduce(whole),
        "deepspeed all_gather": lambda: deepspeed.comm.all_gather_into_tensor(whole, part),
        "deepspeed reduce_scatter": lambda: deepspeed.comm.reduce_scatter_fn(part, whole),
    }
    # Some references are older than the counting: DeepSpeed took its own when the process group was made.
    traffic, found = Traffic(), {}
    for name, call in calls.items():
        traffic.start()
        call()
        found[name] = [traffic.bytes_by_kind(), traffic.calls]
    if hasattr(dist, "all_gather_single"):
        traffic.start()
        dist.all_gather_single(whole, part)
        dist.reduce_scatter_single(part, whole)
        found["newer names"] = [traffic.bytes_by_kind(), traffic.calls]
    found["waited"] = wait_for_the_other(world.rank, traffic)
    return found


def wait_for_the_other(rank: int, traffic: Traffic) -> float:
    """Seconds that this rank waits when rank 1 comes half a second late."""
    dist.barrier()
    traffic.start()
    if rank == 1:
        time.sleep(0.5)
    dist.all_reduce(torch.zeros(1))
    return traffic.seconds


def steps(recipe: str, cases: dict[str, list[str]], zero: dict[str, dict[str, int]], folder: str) -> dict[str, Any]:
    """Bytes by kind of the third step of several runs, some with more in the DeepSpeed JSON, and the sizes they follow from."""
    world = start()
    base = json.loads(scenarios.CPU_JSON.read_text())
    found = {}
    for name, overrides in cases.items():
        scenarios.CPU_JSON = Path(folder) / f"zero3-{world.rank}.json"
        options = {**base["zero_optimization"], **zero.get(name, {})}
        scenarios.CPU_JSON.write_text(json.dumps({**base, "zero_optimization": options}))
        run = Run(recipe, overrides, world)
        # In the first DeepSpeed learns the order of the modules.
        for step in range(2):
            run.step(step)
        traffic = Traffic()
        run.step(2)
        found[name] = {
            "bytes": traffic.bytes_by_kind(),
            "parameters": count_parameters(run.engine.model),
            "micro_steps": run.config.train.global_batch_rows // (world.size * run.config.train.micro_batch_rows),
        }
    return found
