from __future__ import annotations

import dataclasses

from tests.unit.training.costs.test_memory import FULL_7B, LORA_7B, NO_BUFFERS, P7, P_LORA
from training.costs.communication import collectives, step_bytes
from training.costs.memory import Setup


class TestTraffic:
    def test_zero3_gathers_twice_and_reduces_in_every_micro_batch(self) -> None:
        setup = Setup(model=FULL_7B, ranks=8, zero=NO_BUFFERS)
        assert step_bytes(setup, 1) == 3 * 2 * P7 * 7 / 8
        assert step_bytes(setup, 5) == 5 * step_bytes(setup, 1)

    def test_an_adapters_base_is_gathered_too(self) -> None:
        setup = Setup(model=LORA_7B, ranks=8, zero=NO_BUFFERS)
        assert step_bytes(setup, 1) == (2 * 2 * (P7 + P_LORA) + 2 * P_LORA) * 7 / 8

    def test_a_replicated_base_never_travels(self) -> None:
        setup = Setup(model=LORA_7B, placement="replicated", ranks=8)
        assert step_bytes(setup, 1) == step_bytes(setup, 9) == (4 + 4) * P_LORA * 7 / 8
        full = Setup(model=FULL_7B, placement="replicated", ranks=8)
        assert step_bytes(full, 9) == (4 + 2) * P7 * 7 / 8

    def test_hpz_gathers_for_backward_inside_the_node(self) -> None:
        setup = Setup(model=FULL_7B, placement="zero3_hpz", ranks=32, ranks_per_node=8, zero=NO_BUFFERS)
        sizes = {each.name: (each.ranks, each.wire_bytes) for each in collectives(setup, 1)}
        assert sizes["weights, forward"] == (32, 2 * P7 * 31 / 32)
        assert sizes["weights, backward"] == (8, 2 * P7 * 7 / 8)

    def test_what_backward_uses_soon_is_not_gathered_again(self) -> None:
        zero = dataclasses.replace(NO_BUFFERS, max_reuse_distance=2 * P7)
        assert step_bytes(Setup(model=FULL_7B, ranks=8, zero=zero), 1) == 2 * 2 * P7 * 7 / 8

    def test_ranks_that_share_rows_exchange_positions_for_heads(self) -> None:
        setup = Setup(model=LORA_7B, placement="replicated", ranks=8)
        shared = dataclasses.replace(setup, sequence_parallel=4)
        # Per layer queries, keys, values and output of 1,024 positions in bf16, in forward and in backward.
        once = 1024 * 4 * 4096 * 2
        assert step_bytes(shared, 3) - step_bytes(setup, 3) == 3 * 32 * 2 * once * 3 / 4
        recomputed = dataclasses.replace(shared, recomputed_layers=10)
        assert step_bytes(recomputed, 1) - step_bytes(shared, 1) == 10 * once * 3 / 4

    def test_frozen_weights_of_a_recomputed_layer_are_gathered_once_more(self) -> None:
        setup = Setup(model=LORA_7B, ranks=8, zero=NO_BUFFERS)
        recomputed = dataclasses.replace(setup, recomputed_layers=3)
        # q, k, v, o, gate and up; recomputation ends before down.
        layer = 4 * 4096 * 4096 + 2 * 4096 * 11008
        assert step_bytes(recomputed, 2) - step_bytes(setup, 2) == 2 * 3 * 2 * layer * 7 / 8
        full = Setup(model=FULL_7B, ranks=8, zero=NO_BUFFERS)
        assert step_bytes(dataclasses.replace(full, recomputed_layers=3), 1) == step_bytes(full, 1)
