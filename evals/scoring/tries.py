"""Rows that begin alike, packed into tries: a prefix that several rows share is computed once.

A node is a token with everything before it. Nodes are in preorder (parents first, a subtree in one piece), which is what
rows in lexicographic order give. So a node's subtree is the nodes from itself to its `end`, and node k is node q or an
ancestor of it exactly if k <= q < end[k]: two numbers per node say all that attention has to know.

What a trie costs, in units of what one token costs outside attention, is n + n²/attention for n nodes, because attention
with a mask looks at all pairs. A row joins the trie of the row before it if it costs less there than alone: four endings
of a question do, questions that have only the first token in common do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evals.scoring.rows import Row

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Trie:
    """Some rows as one sequence of nodes for the model."""

    rows: tuple[int, ...]
    """Which rows are in it: their indices in what was packed."""
    tokens: Ints
    """Token of each node."""
    positions: Ints
    """How many tokens stand before it in every row it belongs to."""
    ends: Ints
    """One past the last node of its subtree."""
    targets: Ints
    """The scored tokens, row by row."""
    predictors: Ints
    """For each target the node that predicts it."""
    num_targets: tuple[int, ...]
    """How many targets each row has."""

    @property
    def is_chain(self) -> bool:
        """Whether it has no branches: an ordinary sequence, which causal attention computes without a mask."""
        return bool((self.ends == len(self.tokens)).all())


def pack(rows: Sequence[Row], *, limit: int, attention: float | None) -> list[Trie]:
    """Pack rows into tries, each row into one.

    Args:
        rows: with 1 <= first < len(ids).
        limit: nodes in a trie; a row with more inputs is a trie of its own.
        attention: what the cost above says; None if the model cannot compute branches. Rows whose inputs are the
            beginning of another row's are packed with it in any case, which makes no branch.
    """
    # Big-endian bytes sort as the tokens do, and are compared at once.
    inputs = [np.array(row.ids[:-1], dtype=">u4") for row in rows]
    keys = [tokens.tobytes() for tokens in inputs]
    growing: list[_Growing] = []
    for index in sorted(range(len(rows)), key=keys.__getitem__):
        if not growing or not growing[-1].add(index, rows[index], inputs[index], limit, attention):
            growing.append(_Growing(index, rows[index], inputs[index]))
    return [trie.finished() for trie in growing]


def alone(index: int, row: Row) -> Trie:
    """The trie of one row."""
    return _Growing(index, row, np.array(row.ids[:-1], dtype=">u4")).finished()


class _Growing:
    """A trie to which rows are added in lexicographic order."""

    def __init__(self, index: int, row: Row, tokens: npt.NDArray[np.uint32]) -> None:
        self._rows: list[int] = []
        self._num_targets: list[int] = []
        self._tokens: list[int] = []
        self._positions: list[int] = []
        self._ends: list[int] = []
        self._targets: list[int] = []
        self._predictors: list[int] = []
        self._path: list[int] = []  # nodes of the last row
        self._last = tokens[:0]
        self._grow(index, row, tokens, 0)

    def add(self, index: int, row: Row, tokens: npt.NDArray[np.uint32], limit: int, attention: float | None) -> bool:
        """Add a row if that is worth it, and say so."""
        # Of the rows before it in lexicographic order, the last has most in common with a row.
        shared = _num_shared(self._last, tokens)
        size = len(self._tokens)
        grown = size + len(tokens) - shared
        if shared != size:  # else a chain grows, or stays, without a branch
            if attention is None or grown > limit:
                return False
            if grown - size + (grown**2 - size**2) / attention > len(tokens) + len(tokens) ** 2 / attention:
                return False
        self._grow(index, row, tokens, shared)
        return True

    def _grow(self, index: int, row: Row, tokens: npt.NDArray[np.uint32], shared: int) -> None:
        size = len(self._tokens)
        for node in self._path[shared:]:
            self._ends[node] = size
        new = tokens[shared:].tolist()
        self._path[shared:] = range(size, size + len(new))
        self._tokens += new
        self._positions += range(shared, len(tokens))
        self._ends += [-1] * len(new)
        self._rows.append(index)
        self._num_targets.append(len(row.ids) - row.first)
        self._targets += row.ids[row.first :]
        self._predictors += self._path[row.first - 1 :]
        self._last = tokens

    def finished(self) -> Trie:
        for node in self._path:
            self._ends[node] = len(self._tokens)
        return Trie(
            rows=tuple(self._rows),
            tokens=np.array(self._tokens),
            positions=np.array(self._positions),
            ends=np.array(self._ends),
            targets=np.array(self._targets),
            predictors=np.array(self._predictors),
            num_targets=tuple(self._num_targets),
        )


def _num_shared(a: npt.NDArray[np.uint32], b: npt.NDArray[np.uint32]) -> int:
    """Length of the longest common prefix."""
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length
