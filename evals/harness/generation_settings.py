"""What a task's generation settings ask for, by the harness's rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evals.errors import EvalError

DEFAULT_MAX_NEW_TOKENS = 256
"""What the harness's HFLM writes where a task does not say."""

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_KNOWN = {"until", "do_sample", "temperature", "top_p", "top_k", *_LENGTHS}


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How an answer is written."""

    stop: tuple[str, ...]
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int


def generation_settings(kwargs: Mapping[str, Any], eos_text: str | None = None) -> GenerationSettings:
    """The settings of a task's `generation_kwargs`.

    As in the harness, the end-of-text token in writing also ends a text, `do_sample: false` is greedy whatever the
    temperature, and a temperature samples unless `do_sample` says otherwise. A temperature that is not given is 1 for
    samples. Unlike transformers, samples are drawn from all tokens unless top_k says otherwise.

    Raises:
        EvalError: the task asks for something else, e.g. beams.
    """
    if unknown := sorted(set(kwargs) - _KNOWN):
        raise EvalError(
            f"generation_kwargs {', '.join(unknown)} cannot be followed; only {', '.join(sorted(_KNOWN))} can"
        )
    until = kwargs.get("until") or []
    stop = [until] if isinstance(until, str) else list(until)
    stop += [eos_text] if eos_text and eos_text not in stop else []
    temperature = float(kwargs.get("temperature") or 0.0)
    is_sampled = temperature > 0 if (named := kwargs.get("do_sample")) is None else bool(named)
    length = next((kwargs[name] for name in _LENGTHS if kwargs.get(name) is not None), DEFAULT_MAX_NEW_TOKENS)
    return GenerationSettings(
        stop=tuple(term for term in stop if term),
        max_new_tokens=int(length),
        temperature=(temperature if kwargs.get("temperature") is not None else 1.0) if is_sampled else 0.0,
        top_p=float(kwargs.get("top_p", 1.0)) if is_sampled else 1.0,
        top_k=int(kwargs.get("top_k", 0)) if is_sampled else 0,
    )


def without_lengths(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without any of the names of the longest answer."""
    return {name: value for name, value in kwargs.items() if name not in _LENGTHS}
