"""Ranks that share rows train as one process of ordinary PyTorch does on whole rows."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from data_pipeline.stream.state import lanes_of
from tests.distributed.scenarios import Plain
from tests.ranks import run_ranks
from training.checkpoint.image import shard_name

pytestmark = pytest.mark.dist

STEPS = 3
REPLICATED = ("--train.placement", "replicated")
CASES = {
    "full": ["--adapter.kind", "none", *REPLICATED],
    "zero3": ["--adapter.kind", "none", "--model.activation_checkpointing", "full"],
    "lora": ["--adapter.kind", "lora", *REPLICATED, "--model.activation_checkpointing", "1"],
    "monteclora": ["--adapter.kind", "monteclora", *REPLICATED],
}
SIZE = 2
WORLDS = (2, 4)


@pytest.fixture(scope="module")
def shared(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[list[Any], Path]]:
    found = {}
    for world_size in WORLDS:
        folder = tmp_path_factory.mktemp(f"world-{world_size}")
        results = run_ranks(
            "tests.distributed.sequence_scenarios:shared_rows", world_size, recipe=str(tiny_recipe), cases=CASES,
            steps=STEPS, size=SIZE, folder=str(folder),
        )  # fmt: skip
        found[world_size] = results, folder
    return found


@pytest.fixture(scope="module")
def plain(tiny_recipe: Path) -> dict[str, tuple[list[list[Any]], dict[str, Tensor]]]:
    found = {}
    for name, overrides in CASES.items():
        run = Plain(str(tiny_recipe), overrides)
        found[name] = (run.train(STEPS), dict(run.state()))
    return found


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("name", CASES)
def test_every_gradient_is_that_of_whole_rows(
    name: str, world_size: int, shared: dict[int, tuple[list[Any], Path]], plain: dict[str, Any]
) -> None:
    results, folder = shared[world_size]
    ours, (curve, state) = results[0][name], plain[name]
    assert all(other[name]["curve"] == ours["curve"] for other in results)
    for mine, theirs in zip(ours["curve"], curve, strict=True):
        assert mine[3] == theirs[3], "the batches differ"
        for column in range(3):
            assert mine[column] == (None if theirs[column] is None else pytest.approx(theirs[column], rel=1e-4)), column
    shards = [load_file(folder / name / shard_name(rank, world_size)) for rank in range(world_size)]
    assert shards[0].keys() == state.keys()
    for key, value in state.items():
        found = torch.cat([shard[key] for shard in shards])[: value.numel()].view(value.shape)
        largest = float(value.abs().max())
        # Where a gradient is nearly 0, its rounding decides the size of AdamW's step: a twentieth of one is allowed.
        tolerance = 5e-3 / 20 if "/" not in key else 3e-5 * largest + 1e-9
        torch.testing.assert_close(found, value, rtol=1e-4, atol=tolerance, msg=partial("{}: {}".format, key))


def test_a_checkpoint_has_every_lane_once(shared: dict[int, tuple[list[Any], Path]]) -> None:
    streams = []
    for _, folder in shared.values():
        manifest = json.loads((folder / "run-lora" / "checkpoints" / str(STEPS) / "MANIFEST.json").read_text())
        streams.append(manifest["stream"])
    # Which are the same however many ranks share a row, and however many groups there are.
    assert streams[0] == streams[1]
    assert len(lanes_of(streams[0])) == 8


def test_rows_of_a_rank_alone_are_evaluated_without_the_others(shared: dict[int, tuple[list[Any], Path]]) -> None:
    for results, _ in shared.values():
        assert [result[name]["evaluation"] for result in results for name in CASES] == [0.0] * len(results) * len(CASES)


@pytest.mark.parametrize("world_size", WORLDS)
def test_an_exchange_brings_every_position_of_some_heads(
    world_size: int, shared: dict[int, tuple[list[Any], Path]]
) -> None:
    width, heads = 3, 2 * SIZE
    for rank, result in enumerate(shared[world_size][0]):
        found, part = result["exchange"], rank % SIZE
        assert found["shape"] == [2, 2, width * SIZE, 1]
        own_heads = range(2 * part, 2 * part + 2)
        assert found["y"] == [
            1000 * row + 100 * head + position
            for row in range(2)
            for head in own_heads
            for position in range(width * SIZE)
        ]
        # A head's gradient comes from the rank that had it.
        first = rank - part
        weights = [1 + first + head // 2 for _ in range(2) for head in range(heads) for _ in range(width)]
        assert found["grad"] == weights
        assert len(weights) == math.prod((2, heads, width))
