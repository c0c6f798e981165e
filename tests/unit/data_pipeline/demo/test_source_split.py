from __future__ import annotations

import dis
import sysconfig
import tokenize
from io import StringIO
from pathlib import Path
from types import CodeType

import pytest

from data_pipeline.demo.source_split import docstrings, literal_share, parse, strip_prose

SOURCE = '''\
#!/usr/bin/env python
# -*- coding: utf-8 -*-
"""Module ä docstring
# not a comment
"""  # but this is one

# a comment


import os  # why



x = """a string

# kept



as it is"""   # gone


def only_docstring():
    """Nothing else."""


def both(a, # one
         b):
    'ü'; return a  # ä


class C:
    """Doc."""  # and a comment

    # a comment
    text = "# kept"

    async def method(self): "On the line."

    def other(self):
        (
            "In brackets."
        )
        return f"{self.text}  # kept"
'''

STRIPPED = '''\
import os



x = """a string

# kept



as it is"""


def only_docstring():
    pass


def both(a,
         b):
    return a


class C:

    text = "# kept"

    async def method(self): pass

    def other(self):
        return f"{self.text}  # kept"
'''.replace("import os\n\n\n\n", "import os\n\n\n")


def test_code_without_prose() -> None:
    assert strip_prose(SOURCE) == STRIPPED


def test_prose_without_code() -> None:
    assert docstrings(parse(SOURCE)) == [
        "Module ä docstring\n# not a comment",
        "Nothing else.",
        "ü",
        "Doc.",
        "On the line.",
        "In brackets.",
    ]


@pytest.mark.parametrize("source", ["", "# only a comment\n", '"""only a docstring"""', "\n\n\n"])
def test_nothing_is_left(source: str) -> None:
    assert strip_prose(source) == "\n"


def test_what_cannot_be_stripped_is_refused() -> None:
    with pytest.raises((ValueError, SyntaxError)):
        strip_prose("x = 1 + \\\n2 \\\n# comment\ny = 2\n")
    with pytest.raises((SyntaxError, tokenize.TokenError)):
        strip_prose("def f(:\n")


def instructions(code: CodeType) -> list[object]:
    """What a code object does, without where it is in the file and where its constants and jumps are in it."""
    return [
        (
            one.opname,
            None
            if "JUMP" in one.opname or one.opname in ("SEND", "FOR_ITER")
            else instructions(one.argval)
            if isinstance(one.argval, CodeType)
            else repr(one.argval),
        )
        for one in dis.get_instructions(code)
        if one.opname not in ("NOP", "EXTENDED_ARG")
    ]


@pytest.mark.parametrize("name", ["argparse.py", "inspect.py", "json/decoder.py", "dataclasses.py", "typing.py"])
def test_standard_library_compiles_to_the_same_program(name: str) -> None:
    path = Path(sysconfig.get_path("stdlib")) / name
    with tokenize.open(path) as file:
        source = file.read()
    stripped = strip_prose(source)
    # optimize=2 makes the compiler itself drop docstrings: an independent statement of what must remain.
    assert instructions(compile(stripped, name, "exec", optimize=2)) == instructions(
        compile(source, name, "exec", optimize=2)
    )
    assert not [
        token for token in tokenize.generate_tokens(StringIO(stripped).readline) if token.type == tokenize.COMMENT
    ]


def test_literal_share() -> None:
    assert literal_share("") == 0
    assert literal_share("f(x)\n") == 0
    assert literal_share("1234\n") == 1
    assert literal_share("x = 'ab'\n") == pytest.approx(4 / 6)
