"""Batches: tries of nearly the same size, so many that they fit the budget of tokens, for all ranks alike."""

from __future__ import annotations

from collections.abc import Sequence

from evals.scoring.tries import Trie

PADDING = 1 / 32
"""Share of the budget that may be padding, if a batch has more than one trie: more padding costs more than a forward."""


def deal(tries: Sequence[Trie], *, rank: int, world_size: int, batch_tokens: int) -> list[list[Trie]]:
    """This rank's batches: as many on every rank, the widest first, chains apart from tries with branches.

    The widest first, so that what does not fit into memory fails at once. A batch has at most `batch_tokens` nodes,
    padding included, or a single trie. A rank for which no trie is left repeats a smallest one; its answer is the same
    wherever it is computed.
    """
    rounds: list[list[Trie]] = []
    for is_chain in (True, False):
        kind = sorted((trie for trie in tries if trie.is_chain == is_chain), key=_size, reverse=True)
        sizes = [_size(trie) for trie in kind]
        start = 0
        while start < len(kind):
            stop = start + world_size * _num_rows(sizes, start, world_size, batch_tokens)
            rounds.append(kind[start:stop])
            start = stop
    rounds.sort(key=lambda of_all: _size(of_all[0]), reverse=True)
    return [of_all[rank::world_size] or [of_all[-1]] for of_all in rounds]


def _num_rows(sizes: Sequence[int], start: int, world_size: int, batch_tokens: int) -> int:
    """How many of these falling sizes, from `start` on, make a batch of each rank."""
    padding = 0
    for count, first in enumerate(range(start, len(sizes), world_size)):
        # The last rank gets the smallest, so it has most padding.
        padding += sizes[start] - sizes[min(first + world_size, len(sizes)) - 1]
        if count and ((count + 1) * sizes[start] > batch_tokens or padding > PADDING * batch_tokens):
            return count
    return len(sizes) - start


def _size(trie: Trie) -> int:
    return len(trie.tokens)
