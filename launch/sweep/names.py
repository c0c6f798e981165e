"""Short, stable names: of axes in a cell's name, of values, of cells."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import PurePath
from typing import Any

METHOD = "method"
"""The axis of named groups of settings."""
LONGEST = 100
"""Characters of a cell's name; a longer one is cut."""


def text_of(value: Any) -> str:
    """A setting's value the way the command line reads it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, tuple | list):
        return ",".join(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{json.dumps(key)} = {number(item)}' for key, item in value.items())}}}"
    return str(value)


def number(value: float) -> str:
    """A number without loss in as few characters as read well: 1e-5, 0.05, 2000, 2e10."""
    if isinstance(value, bool):
        return str(value).lower()
    exact = Decimal(repr(value))
    sign, digits, exponent = exact.normalize().as_tuple()
    plain = f"{exact:f}".removesuffix(".0")
    if not any(digits):
        return plain
    assert isinstance(exponent, int)
    first, rest = str(digits[0]), "".join(map(str, digits[1:]))
    scientific = f"{'-' * sign}{first}{'.' * bool(rest)}{rest}e{exponent + len(rest)}"
    # A whole number of thousands is read more easily written out, and a whole number must stay one.
    is_shorter = len(scientific) < (len(plain) if abs(value) < 1 else len(plain) - 2)
    return scientific if is_shorter and isinstance(value, float) else plain


def labels(axes: Sequence[str]) -> dict[str, str]:
    """What each axis is called in names: the last part of its setting, and as much before it as tells it from others."""
    found = {}
    for axis in axes:
        parts = axis.split(".")
        for length in range(1, len(parts) + 1):
            ending = parts[-length:]
            if sum(other.split(".")[-length:] == ending for other in axes) == 1:
                break
        found[axis] = path_safe("_".join(ending))
    return found


def cell_names(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each cell, given as its method and the values of its axes; different cells have different names."""
    called = labels(list(dict.fromkeys(axis for values in cells for axis in values if axis != METHOD)))
    names = ["-".join(_part(called, axis, value) for axis, value in values.items()) for values in cells]
    safe = [name if len(name) <= LONGEST else "" for name in names]
    return [
        name if name and safe.count(name) == 1 else f"{long[:LONGEST]}-{_digest(values)}"
        for name, long, values in zip(safe, names, cells, strict=True)
    ]


def _part(called: Mapping[str, str], axis: str, value: Any) -> str:
    if axis == METHOD:
        return str(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    text = text_of(PurePath(value).name if isinstance(value, PurePath) else value)
    is_joined = is_number and text[0].isdigit() and not called[axis][-1].isdigit()
    return f"{called[axis]}{'' if is_joined else '_'}{path_safe(text)}"


def path_safe(text: str) -> str:
    """The text with everything that is no letter, digit, dot, sign or underscore replaced; a path's last part."""
    last = text.rstrip("/").rpartition("/")[2] or text
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", last)


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()[:6]
