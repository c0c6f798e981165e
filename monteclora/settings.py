"""Whether the values of a configuration have the types its fields say, as a dataclass does not check them itself."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def type_problems(config: Any) -> Iterator[tuple[str, str]]:
    """Yield (field name, what is wrong and what to do) for every value that is not of its field's type.

    A whole number is a float too; True and False are no numbers.
    """
    for name, hint in get_type_hints(type(config)).items():
        if name in {field.name for field in dataclasses.fields(config)}:
            value = getattr(config, name)
            if not _fits(value, hint):
                yield name, f"is {value!r}; give {_wanted(hint)}"


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is Literal:
        return isinstance(value, str)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(k, str) and _fits(v, arguments[1]) for k, v in value.items())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if hint is types.NoneType else isinstance(value, hint)


def _wanted(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_wanted(option) for option in arguments)
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple:
        return f"a list, each entry {_wanted(arguments[0])}"
    if origin is dict:
        return f"a table of patterns, each with {_wanted(arguments[1])}"
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", types.NoneType: "None"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
