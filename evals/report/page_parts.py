"""Parts that the page's sections are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from evals import formatting as fmt


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; on a phone each row becomes a card, whose cells are named by `data-label`."""
    head = "".join(f"<th>{header}</th>" for header in headers)
    body = "".join(
        "<tr>"
        + "".join(f'<td data-label="{header}">{cell}</td>' for header, cell in zip(headers, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def text_list(texts: Sequence[str]) -> str:
    """Sentences, one below the other."""
    return '<ul class="statements">' + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def title(label: str) -> str:
    """A method's label as HTML at the beginning of a cell."""
    return escape(capital(label))


def effect(estimate: Mapping[str, Any] | None) -> str:
    """A difference, and below it the half-width of its interval."""
    value, _, spread = fmt.effect(estimate).partition(" \N{PLUS-MINUS SIGN} ")
    return f"<span>{value}<small>\N{PLUS-MINUS SIGN} {spread}</small></span>" if spread else value


def interval(estimate: Mapping[str, Any]) -> tuple[float, float]:
    """The 95 % interval that decides: the bootstrap's where there is one; infinite where it is unknown."""
    low, high = (estimate.get(f"bootstrap_{end}", estimate[end]) for end in ("low", "high"))
    return (-math.inf, math.inf) if low is None or high is None else (low, high)


def colored(text: str, change: Mapping[str, Any] | None, sign: int = 1) -> str:
    """Green for a clear improvement, orange for a clear loss: the 95 % interval of sign * change excludes 0."""
    low, high = interval(change) if change else (0.0, 0.0)
    if not change or low <= 0 <= high:
        return text
    return f'<span class="{"good" if sign * change["value"] > 0 else "bad"}">{text}</span>'
