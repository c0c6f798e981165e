"""Where generated text ends: before a stop string, found without decoding everything after every token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
"""Token ids -> text, without special tokens."""


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the stop strings, cut at each in turn, as lm-evaluation-harness does; empty ones are ignored."""
    for string in stop:
        if string:
            text = text.partition(string)[0]
    return text


class StopSearch:
    """Looks for stop strings at the end of a growing sequence of tokens."""

    def __init__(self, decode: Decode, stop: Sequence[str]) -> None:
        """Search for any of the strings in what `decode` makes of the tokens."""
        self._decode = decode
        self._stop = [string for string in stop if string]
        # Tokens that have a byte of it, and one more: some decoders drop the space that the first token begins with.
        self._tail = max((len(string.encode()) for string in self._stop), default=0) + 1
        self._may_end: dict[int, bool] = {}

    def is_complete(self, ids: Sequence[int]) -> bool:
        """Whether the text of `ids` has a stop string that ends with the last of them.

        The last tokens are decoded if the very last may end a stop string, all if the last ones have one.
        """
        return self._can_end(ids[-1]) and self._has_stop(ids[-self._tail :]) and self._has_stop(ids)

    def _can_end(self, token: int) -> bool:
        """Whether the token's own text has the end of a stop string; unknown for space, and parts of a character."""
        if token not in self._may_end:
            text, ends = self._decode([token]), [string[-1] for string in self._stop]
            self._may_end[token] = any(end in text or end.isspace() or not end.isascii() for end in ends)
        return self._may_end[token]

    def _has_stop(self, ids: Sequence[int]) -> bool:
        text = self._decode(ids)
        return any(string in text for string in self._stop)
