"""What a model is to go on from, and what it has written then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What to go on from, how often and how.

    A sample is a function of the model, `seed`, `ids` and its number among the samples: not of the batch that it is in, of
    other prompts or of the number of ranks, beyond what rounding of the logits can do where two outcomes are that close.
    """

    ids: tuple[int, ...]
    """Tokens to read."""
    max_new_tokens: int
    """Tokens to write at most."""
    stop: tuple[str, ...] = ()
    """Strings before which the text ends. The tokenizer's end-of-text in writing is not among them by itself."""
    samples: int = 1
    """Texts to write."""
    temperature: float = 0.0
    """Logits are divided by it; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens with at least this probability."""
    top_k: int = 0
    """Draw from so many tokens; 0 for all."""
    seed: int = 0
    """Of the draws."""

    def problems(self, max_length: int) -> list[str]:
        """What is wrong with it for a model that reads `max_length` tokens."""
        found = []
        if not self.ids:
            found.append("has no tokens; give it at least the token that begins a text")
        if self.max_new_tokens < 1:
            found.append(f"max_new_tokens = {self.max_new_tokens}; ask for 1 or more")
        elif self.max_new_tokens >= max_length:
            found.append(
                f"max_new_tokens = {self.max_new_tokens} leaves no room for the prompt in the model's {max_length} tokens; "
                f"set it to {max_length - 1} or less"
            )
        if self.samples < 1:
            found.append(f"samples = {self.samples}; ask for 1 or more")
        if not 0 <= self.temperature < float("inf"):
            found.append(f"temperature = {self.temperature}; use 0 for the likeliest token, or a positive number")
        if not 0 < self.top_p <= 1:
            found.append(f"top_p = {self.top_p}; use a probability above 0, 1 for all tokens")
        if self.top_k < 0:
            found.append(f"top_k = {self.top_k}; use a number of tokens, 0 for all")
        return found


class Generation(NamedTuple):
    """One text that a model has written."""

    text: str
    """Up to the first stop string."""
    tokens: int
    """Written, with those of a stop string and the end-of-text token."""
    finish: str
    """Why it ends: "stop" (a stop string), "eos", "length", or "not_finite" (the model's logits were NaN or infinite)."""


def fit(prompt: Prompt, max_length: int) -> tuple[tuple[int, ...], bool]:
    """The tokens that the model reads, the last max_length - max_new_tokens, and whether that leaves any out."""
    room = max_length - prompt.max_new_tokens
    return prompt.ids[-room:], len(prompt.ids) > room
