from __future__ import annotations

import ast
import inspect
import sysconfig
import tokenize
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.demo.pairs import INSTRUCTION, Pair, function_pairs, without_duplicates
from data_pipeline.demo.source_split import strip_prose, without_docstrings

SOURCE = '''\
"""A module with a long enough docstring."""
import functools


def plain(a, b=1):  # why
    """Add two numbers, slowly."""
    # first
    def inner():
        """A documented function inside, of the response."""
        return a

    return inner() + b  # last


class Outer:
    """A class with a long enough docstring."""

    class Inner:
        @functools.cache  # a decorator
        @staticmethod
        async def method(
            self,

            *, name: "str",
        ) -> None:
            r\'\'\'Quoted \\d otherwise,

            over lines.
            \'\'\'

            await name

    if True:
        def conditional(self): return 1

        def short(self):
            """Short."""
            return 2

        def nothing(self):
            """Nothing but a docstring."""

        def margin(self):
            """Holds its own indentation."""
            return """
        in a string
        """

        def after(self):
            """Ends with another statement on its line."""; return 3


def on_one_line(x): "A docstring on the line."; return x


def too_long(x):
    """With forty-one lines of a body."""
{}    return x


def just_fits(x):
    """With forty lines of a body."""
{}    return x
'''.format("    x += 1\n" * 40, "    x -= 1\n" * 39)

METHOD = """\
@functools.cache
@staticmethod
async def method(
    self,
    *, name: "str",
) -> None:
    r\'\'\'Quoted \\d otherwise,

    over lines.
    \'\'\'
"""


def pairs_of(name: str, source: str) -> list[Pair]:
    return list(function_pairs(name, source, strip_prose(source)))


def test_what_becomes_a_pair_and_how_it_is_written() -> None:
    found = {pair.id: pair for pair in pairs_of("a.py", SOURCE)}
    plain, method, after, fits = found.values()
    assert plain == Pair(
        "a.py:5:plain",
        "a.py",
        INSTRUCTION + 'def plain(a, b=1):\n    """Add two numbers, slowly."""\n',
        "    def inner():\n        return a\n\n    return inner() + b\n",
    )
    assert method == Pair("a.py:21:Outer.Inner.method", "a.py", INSTRUCTION + METHOD, "    await name\n")
    assert after.id.endswith(":Outer.after")
    assert after.prompt.endswith('"""Ends with another statement on its line."""\n')
    assert after.response == "    return 3\n"
    assert fits.id.endswith(":just_fits")
    assert fits.response.count("\n") == 40


def functions_of(path: Path) -> dict[str, Any]:
    """Functions by line, found by Python's own walk."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {str(node.lineno): node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("name", ["asyncio/base_events.py", "pathlib.py", "unittest/mock.py"])
def test_prompt_and_response_are_the_function_of_the_file(name: str) -> None:
    path = Path(sysconfig.get_path("stdlib")) / name
    functions = functions_of(path)
    found = pairs_of(name, path.read_text(encoding="utf-8"))
    assert len(found) >= 20
    for pair in found:
        file, line, qualified_name = pair.id.split(":")
        original = functions[line]
        assert (file, qualified_name.split(".")[-1]) == (name, original.name)
        (written,) = ast.parse(pair.prompt + pair.response).body
        assert isinstance(written, type(original))
        docstring = inspect.cleandoc(ast.get_docstring(written) or "").rstrip()
        assert docstring == inspect.cleandoc(ast.get_docstring(original) or "").rstrip()
        assert len(docstring) >= 18
        # The prompt ends with the docstring, and the response begins behind it.
        (prompted,) = ast.parse(pair.prompt).body
        assert isinstance(prompted, type(original))
        assert [ast.dump(statement) for statement in prompted.body] == [ast.dump(written.body[0])]
        bare = [ast.dump(without_docstrings(ast.Module([node], []))) for node in (original, written)]
        assert bare[0] == bare[1]
        assert 1 <= pair.response.count("\n") <= 40
        comments = [
            token.string
            for token in tokenize.generate_tokens(StringIO(pair.prompt + pair.response).readline)
            if token.type == tokenize.COMMENT
        ]
        assert comments == [INSTRUCTION.strip()]


def test_a_prompt_or_a_response_comes_once() -> None:
    first, same_prompt, same_response, other = (
        *(Pair("1", "a", "p", "r"), Pair("2", "a", "p", "s"), Pair("3", "b", "q", "r"), Pair("4", "b", "q", "s")),
    )
    seen: set[str] = set()
    assert list(without_duplicates([first, same_prompt, same_response], seen)) == [first]
    assert list(without_duplicates([first, other], seen)) == [other]
