from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from training.randomness import micro_batch_seed

whole = st.integers(0, 2**40)


@given(seed=whole, step=whole, lane=whole)
def test_it_is_a_seed_that_torch_takes_and_the_same_every_time(seed: int, step: int, lane: int) -> None:
    found = micro_batch_seed(seed, step, lane)
    assert 0 <= found < 2**63
    assert found == micro_batch_seed(seed, step, lane)
    torch.Generator().manual_seed(found)


@given(one=st.tuples(whole, whole, whole), other=st.tuples(whole, whole, whole))
def test_places_that_differ_draw_differently(one: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    assert (micro_batch_seed(*one) == micro_batch_seed(*other)) == (one == other)


def test_digits_of_neighbours_do_not_run_together() -> None:
    assert micro_batch_seed(1, 12, 3) != micro_batch_seed(11, 2, 3) != micro_batch_seed(1, 1, 23)


def test_every_branch_of_a_micro_batch_draws_differently() -> None:
    seeds = {micro_batch_seed(17, 3, 8, branch) for branch in range(5)}
    assert len(seeds) == 5
    assert micro_batch_seed(17, 3, 8) == micro_batch_seed(17, 3, 8, 0)
    # A branch is told apart from any lane.
    assert micro_batch_seed(1, 2, 3, 4) not in {micro_batch_seed(1, 2, lane) for lane in (3, 4, 34, 12)}


def test_bits_are_uniform_over_steps_and_lanes() -> None:
    seeds = [micro_batch_seed(17, step, lane) for step in range(100) for lane in range(0, 64, 2)]
    assert len(set(seeds)) == len(seeds) == 3200
    for bit in range(63):
        ones = sum(seed >> bit & 1 for seed in seeds)
        # Five standard deviations of a fair coin.
        assert abs(ones - 1600) < 5 * 28.3


def test_a_resume_on_another_machine_draws_the_same() -> None:
    # `printf 17/3/8 | b2sum -l 64`; with another number, a resumed run would draw other noise than it began with.
    digest = bytes.fromhex("1ba670832870cacd")
    assert micro_batch_seed(17, 3, 8) == int.from_bytes(digest, "little") // 2
