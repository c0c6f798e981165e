"""What the tasks ask of a model: rows of token ids, some of whose tokens are scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from evals.errors import EvalError

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


def fit(row: Row, max_length: int) -> tuple[Row, bool]:
    """Keep a row's last max_length + 1 tokens, of which the model reads max_length; say whether tokens were cut off.

    What is cut off is context, as in lm-evaluation-harness.

    Raises:
        EvalError: no token stands before the scored ones, or more than `max_length` tokens are scored.
    """
    if not 1 <= row.first < len(row.ids):
        raise EvalError(
            f"a row of {len(row.ids)} tokens is to be scored from token {row.first} on; a scored token needs one before "
            "it, so give the row a context, or the tokenizer's BOS token as context"
        )
    scored, surplus = len(row.ids) - row.first, len(row.ids) - max_length - 1
    if scored > max_length:
        raise EvalError(
            f"{scored} tokens of a row are to be scored, and the model reads {max_length} at most; shorten what is "
            "scored, or raise the longest model input"
        )
    return (Row(row.ids[surplus:], row.first - surplus), True) if surplus > 0 else (row, False)


def fingerprint(examples: Sequence[Example]) -> str:
    """Hash of every token scored: equal hashes mean that two results are answers to the same questions."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.id, [(row.ids, row.first) for row in example.rows])).encode())
    return f"sha256:{digest.hexdigest()}"
