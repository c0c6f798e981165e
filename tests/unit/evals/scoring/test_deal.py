"""Batches of tries for several ranks."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from evals.scoring.deal import PADDING, deal
from evals.scoring.rows import Row
from evals.scoring.tries import Trie, pack

lengths = st.lists(st.tuples(st.integers(1, 20), st.booleans()), max_size=30)


def tries_of(shapes: list[tuple[int, bool]]) -> list[Trie]:
    """A chain of so many nodes each, or a trie with a branch at its second node."""
    rows = []
    for number, (length, is_chain) in enumerate(shapes):
        common = range(1000 * number, 1000 * number + length)
        rows.append(Row((*common, 1, 7), first=1))
        if not is_chain:
            rows.append(Row((*common, 2, 7), first=1))
    return pack(rows, limit=1000, attention=1e9) if rows else []


@given(lengths, st.integers(1, 4), st.integers(1, 100))
def test_every_trie_is_dealt_and_ranks_do_the_same_number(
    shapes: list[tuple[int, bool]], world_size: int, batch_tokens: int
) -> None:
    tries = tries_of(shapes)
    deals = [deal(tries, rank=rank, world_size=world_size, batch_tokens=batch_tokens) for rank in range(world_size)]
    assert len({len(batches) for batches in deals}) == 1
    dealt = [id(trie) for batches in deals for batch in batches for trie in batch]
    assert set(dealt) == {id(trie) for trie in tries}
    again = len(dealt) - len(tries)
    assert again <= 2 * (world_size - 1) * max(1, len(deals[0])), "only ranks without work repeat"
    for batches in deals:
        assert all(batches), "no forward without rows"
        widths = [max(len(trie.tokens) for trie in batch) for batch in batches]
        for batch, width in zip(batches, widths, strict=True):
            padding = sum(width - len(trie.tokens) for trie in batch)
            assert len(batch) == 1 or (len(batch) * width <= batch_tokens and padding <= PADDING * batch_tokens + 1e-9)
            assert len({trie.is_chain for trie in batch}) == 1
    if world_size == 1:
        assert again == 0
        assert all(a >= b for a, b in itertools.pairwise(widths))


def test_a_rank_without_work_repeats_the_smallest() -> None:
    tries = tries_of([(9, True), (5, True), (7, True)])
    deals = [deal(tries, rank=rank, world_size=2, batch_tokens=1) for rank in range(2)]
    assert [[len(trie.tokens) for batch in batches for trie in batch] for batches in deals] == [[10, 6], [8, 6]]
