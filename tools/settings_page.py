"""Write docs/settings.md: every setting of a recipe, with its type, its default and its docstring.

    python tools/settings_page.py

The docstrings under the fields of the configuration are the only source, here as in --help.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import re
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "settings.md"
sys.path.insert(0, str(ROOT))

from training.config import Config  # noqa: E402
from training.record.run_record import MAY_CHANGE  # noqa: E402

HEAD = """# Settings

Every setting of a recipe: its type, its default, what it does. They are the docstrings of the configuration, and `python training/main.py --help` has the same;
`python tools/settings_page.py` writes this page anew. [Recipes](recipes.md) says how they are written. A run may be continued with another value
of what is marked ↻, and of nothing else.
"""
NAME = "NAME"
"""Stands for the names that a recipe gives to its sources and tasks."""


@functools.cache
def docstrings(kind: type) -> dict[str, str]:
    """The string below each field of a dataclass and of those that it inherits from, in one line each."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


def type_of(hint: Any) -> str:
    """A type as a recipe's writer thinks of it; None is said by the default."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(type_of(kind) for kind in get_args(hint) if kind is not type(None))
    if get_origin(hint) is Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in get_args(hint))
    if get_origin(hint) is tuple:
        return f"list of {type_of(get_args(hint)[0])}s"
    if get_origin(hint) is dict:
        return f"table of {type_of(get_args(hint)[1])}s"
    return {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}[hint]


def default_of(field: dataclasses.Field[Any]) -> str:
    """What counts where the setting is left out."""
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is dataclasses.MISSING:
        return "must be given"
    else:
        value = field.default
    if value is None:
        return "not set"
    if isinstance(value, tuple | dict) and not value:
        return "none"
    return f"`{value}`" if isinstance(value, Path) else f"`{json.dumps(value)}`"


def as_markdown(text: str) -> str:
    """A docstring, with what a Markdown page would take for emphasis or a tag in code."""
    parts = re.split(r"(`+[^`]*`+)", text)
    plain = (re.sub(r"([*<\[])", r"\\\1", part) for part in parts[::2])
    return "".join(map("".join, zip(plain, [*parts[1::2], ""], strict=True)))


def lines(kind: type, path: str) -> Iterator[str]:
    """The settings of a section, each an item of a list, and then its sections in turn."""
    hints, nested = get_type_hints(kind), []
    # What an adapter is comes before the settings that it has from its kinds.
    for field in sorted(dataclasses.fields(kind), key=lambda field: field.name not in kind.__annotations__):
        hint, name = hints[field.name], f"{path}.{field.name}"
        if get_origin(hint) is dict and dataclasses.is_dataclass(get_args(hint)[1]):
            nested.append((get_args(hint)[1], f"{name}.{NAME}"))
        elif dataclasses.is_dataclass(hint):
            nested.append((hint, name))
            continue
        else:
            mark = " · ↻" if name.startswith(MAY_CHANGE) else ""
            yield f"- **`{name}`** · {type_of(hint)} · {default_of(field)}{mark}  "
            yield f"  {as_markdown(docstrings(kind)[field.name])}"
    for section, name in nested:
        yield ""
        yield f"### {name}"
        yield ""
        yield as_markdown(" ".join((section.__doc__ or "").split()))
        yield ""
        yield from lines(section, name)


def page() -> str:
    """The whole page."""
    written = [HEAD]
    hints = get_type_hints(Config)
    for field in dataclasses.fields(Config):
        section = hints[field.name]
        written += [f"## {field.name}", "", as_markdown(inspect.cleandoc(section.__doc__)), ""]
        written += [*lines(section, field.name), ""]
    return "\n".join(written).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
