"""What the tasks ask of a model: rows of token ids, some of whose tokens are scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Row:
    """One sequence for the model.

    Attributes:
        ids: token ids. The last one is predicted but never read, so the model's input is `ids[:-1]`.
        first: index (>= 1) of the first scored token; the row's score is log p(ids[first:] | ids[:first]), in nats.
    """

    ids: tuple[int, ...]
    first: int


@dataclass(frozen=True)
class Example:
    """One scored unit (a document, a question): its rows, and what its task needs to turn scores into a result."""

    id: str
    rows: tuple[Row, ...]
    details: dict[str, Any] = field(default_factory=dict)


def fingerprint(examples: Sequence[Example]) -> str:
    """Hash of every token scored: equal hashes mean that two results are answers to the same questions."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.id, [(row.ids, row.first) for row in example.rows])).encode())
    return f"sha256:{digest.hexdigest()}"
