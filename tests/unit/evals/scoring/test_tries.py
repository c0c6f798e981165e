"""Tries against the rows they were made of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.scoring.rows import Row
from evals.scoring.tries import Trie, pack


@st.composite
def rows(draw: st.DrawFn) -> Row:
    # Three tokens, so that prefixes are shared, rows repeat, and some are the beginning of others.
    ids = draw(st.lists(st.integers(0, 2), min_size=2, max_size=9))
    return Row(tuple(ids), first=draw(st.integers(1, len(ids) - 1)))


many_rows = st.lists(rows(), max_size=12)
limits = st.integers(1, 30)
attentions = st.sampled_from([None, 1.0, 10.0, 1e9])


def prefix_of(trie: Trie, node: int) -> tuple[int, ...]:
    """What attention sees from a node, in order of position."""
    seen = [other for other in range(node + 1) if node < trie.ends[other]]
    assert trie.positions[seen].tolist() == list(range(len(seen)))
    return tuple(trie.tokens[seen].tolist())


@given(many_rows, limits, attentions)
def test_every_target_is_predicted_by_its_prefix(given_rows: list[Row], limit: int, attention: float | None) -> None:
    tries = pack(given_rows, limit=limit, attention=attention)
    assert sorted(index for trie in tries for index in trie.rows) == list(range(len(given_rows)))
    for trie in tries:
        start = 0
        for index, count in zip(trie.rows, trie.num_targets, strict=True):
            row = given_rows[index]
            assert trie.targets[start : start + count].tolist() == list(row.ids[row.first :])
            for place in range(count):
                assert prefix_of(trie, trie.predictors[start + place]) == row.ids[: row.first + place]
            start += count
        assert start == len(trie.targets) == len(trie.predictors)


@given(many_rows, limits, attentions)
def test_a_prefix_is_computed_once(given_rows: list[Row], limit: int, attention: float | None) -> None:
    for trie in pack(given_rows, limit=limit, attention=attention):
        prefixes = [prefix_of(trie, node) for node in range(len(trie.tokens))]
        assert len(set(prefixes)) == len(prefixes)
        of_rows = {given_rows[index].ids[:end] for index in trie.rows for end in range(1, len(given_rows[index].ids))}
        assert set(prefixes) == of_rows, "nothing else is computed"


@given(many_rows, limits, attentions)
def test_limits_and_branches(given_rows: list[Row], limit: int, attention: float | None) -> None:
    for trie in pack(given_rows, limit=limit, attention=attention):
        longest = max(len(given_rows[index].ids) - 1 for index in trie.rows)
        assert trie.is_chain == (longest == len(trie.tokens))
        assert trie.is_chain or (len(trie.tokens) <= limit and attention is not None)


@given(many_rows, attentions)
def test_sharing_costs_no_more_than_rows_alone(given_rows: list[Row], attention: float | None) -> None:
    def cost(size: int) -> float:
        return size + (0 if attention is None else size**2 / attention)

    tries = pack(given_rows, limit=1000, attention=attention)
    alone = sum(cost(len(row.ids) - 1) for row in given_rows)
    assert sum(cost(len(trie.tokens)) for trie in tries) <= alone + 1e-9


def question(context: list[int], *endings: list[int]) -> list[Row]:
    return [Row((*context, *ending), first=len(context)) for ending in endings]


def test_endings_share_their_context() -> None:
    (trie,) = pack(question([5, 6, 7], [1, 2], [1, 3, 4], [2], [1, 2]), limit=100, attention=1e9)
    # The last token of a row is no input. Endings (1,) twice, (1, 3) and none: two nodes beside the context's three.
    assert trie.tokens.tolist() == [5, 6, 7, 1, 3]
    assert trie.is_chain
    assert sorted(trie.rows) == [0, 1, 2, 3]


def test_branches_meet_where_they_part() -> None:
    (trie,) = pack(question([5, 6], [1, 1, 9], [2, 1, 9]), limit=100, attention=1e9)
    assert trie.tokens.tolist() == [5, 6, 1, 1, 2, 1]
    assert trie.positions.tolist() == [0, 1, 2, 3, 2, 3]
    assert trie.ends.tolist() == [6, 6, 4, 4, 6, 6]
    assert not trie.is_chain


@pytest.mark.parametrize("hidden", [512, 4096])
def test_the_first_token_is_not_worth_a_mask_but_a_long_prefix_is(hidden: int) -> None:
    rng = np.random.default_rng(0)

    def tokens(count: int) -> list[int]:
        return [int(token) for token in rng.integers(10, 9999, count)]

    shots = tokens(600)
    few = [row for _ in range(5) for row in question([1, *tokens(70)], *(tokens(20) for _ in range(4)))]
    many = [row for _ in range(5) for row in question([*shots, *tokens(70)], *(tokens(20) for _ in range(4)))]
    assert len(pack(few, limit=4096, attention=2.0 * hidden)) == 5
    assert len(pack(many, limit=4096, attention=2.0 * hidden)) == 1
