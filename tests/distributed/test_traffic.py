"""Counted bytes of real collectives and real steps against what they must be by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.ranks import run_ranks

pytestmark = pytest.mark.dist

PART, WHOLE = 400, 800
"""Bytes of 100 and 200 fp32 numbers."""


def test_collectives_of_two_ranks() -> None:
    ranks = run_ranks("tests.distributed.traffic_scenarios:collectives", 2)
    first, second = (rank.pop("waited") for rank in ranks)
    # Rank 1 came half a second late; how long it then waited itself is up to the machine.
    assert first > 0.25
    assert second < first
    expected: dict[str, Any] = {
        "all_gather": {"all_gather": PART},
        "all_gather_into_tensor": {"all_gather": PART},
        "asynchronous": {"all_gather": PART},
        "coalesced": {"all_gather": 2 * PART},
        "all_reduce": {"all_reduce": WHOLE},
        "bf16": {"all_reduce": WHOLE / 2},
        "reduce_scatter_tensor": {"reduce_scatter": PART},
        # One of the two sends all of it.
        "broadcast": {"broadcast": WHOLE / 2},
        "all_to_all_single": {"all_to_all": WHOLE / 2},
        "alone": {"all_reduce": 0},
        "barrier": {},
        "deepspeed all_reduce": {"all_reduce": WHOLE},
        "deepspeed all_gather": {"all_gather": PART},
        "deepspeed reduce_scatter": {"reduce_scatter": PART},
        "newer names": {"all_gather": PART, "reduce_scatter": PART},
    }
    for rank in ranks:
        rank.setdefault("newer names", [expected["newer names"], 2])
        assert {name: sent for name, (sent, _) in rank.items()} == expected
        # Coalesced collectives are one call of the backend.
        assert {name for name, (_, calls) in rank.items() if calls != 1} == {"barrier", "newer names"}


FULL, LORA = ["--adapter.kind", "none"], ["--adapter.kind", "lora"]
REPLICATED, BF16 = ["--train.placement", "replicated"], ["--train.precision", "bf16"]
CASES = {
    "full": FULL,
    "full, small": FULL,
    "full, bf16": [*FULL, *BF16],
    "lora": LORA,
    "lora, persistent": LORA,
    "full, replicated": [*FULL, *REPLICATED],
    "lora, replicated": [*LORA, *REPLICATED],
}
LARGE = {"stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0, "stage3_param_persistence_threshold": 0}
"""What a model is to DeepSpeed that is much larger than these settings are usually."""
ZERO = {
    "full": LARGE,
    "full, small": {"stage3_param_persistence_threshold": 0},
    "full, bf16": LARGE,
    "lora": LARGE,
    # As large as an adapter's matrices: at most rank 4 times 64.
    "lora, persistent": {**LARGE, "stage3_param_persistence_threshold": 256},
}


def test_steps_of_two_ranks(tiny_recipe: Path, tmp_path: Path) -> None:
    (found, other) = run_ranks(
        "tests.distributed.traffic_scenarios:steps",
        2,
        recipe=str(tiny_recipe),
        cases=CASES,
        zero=ZERO,
        folder=str(tmp_path),
    )
    assert found == other
    micro_steps = found["full"]["micro_steps"]
    assert micro_steps == 2
    base = found["full"]["parameters"]["total"]
    adapter = found["lora"]["parameters"]["trainable"]
    assert found["lora"]["parameters"]["total"] == base + adapter

    def half(elements: int, size: int = 4) -> float:
        """(n - 1) / n of them, in bytes; no parameter here has an odd number of elements, which would be padded."""
        return elements * size / 2

    norms, embedding = (2 * 2 + 1) * 32, 512 * 32
    # Backward ends at the first adapter; what lies before is only gathered for forward.
    reached = base - embedding - 32
    expected = {
        # Gathered for forward and for backward in every micro-step, in which its gradients are reduced, too.
        "full": (2 * micro_steps * half(base), micro_steps * half(base)),
        # What fits into the bucket of prefetched weights stays from forward to backward.
        "full, small": (micro_steps * half(base), micro_steps * half(base)),
        "full, bf16": (2 * micro_steps * half(base, 2), micro_steps * half(base, 2)),
        "lora": (micro_steps * half(base + reached + 2 * adapter), micro_steps * half(adapter)),
        # Adapters and norms stay whole, and are brought to all ranks once, after the update.
        "lora, persistent": (
            micro_steps * half(base + reached - 2 * norms + 32) + half(adapter + norms),
            micro_steps * half(adapter),
        ),
        # Gradients once, weights once, nothing for what is frozen.
        "full, replicated": (half(base), half(base)),
        "lora, replicated": (half(adapter), half(adapter)),
    }
    for name, (gathered, reduced) in expected.items():
        sent = found[name]["bytes"]
        assert (name, sent.pop("all_gather"), sent.pop("reduce_scatter")) == (name, gathered, reduced)
        # The norm of the gradients, the numbers that ranks agree on.
        assert sum(sent.values()) < 200, (name, sent)
