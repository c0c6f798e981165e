"""Instruction pairs of the demo corpus: from a function's signature and docstring to its body."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from data_pipeline.demo.source_split import parse, without_docstrings

INSTRUCTION = "# Write the body of this function.\n"
"""What every prompt begins with; a comment, so that a prompt and its response together are Python."""
MIN_DOCSTRING_CHARACTERS = 20
MAX_BODY_LINES = 40

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Pair:
    """An instruction and its answer.

    Attributes:
        id: file, line and qualified name of the function.
        document: the file, of which there may be several pairs.
        prompt: the instruction, then the function up to the end of its docstring, from the margin on.
        response: the rest of the function, indented as it is behind the prompt, without comments and inner docstrings.
    """

    id: str
    document: str
    prompt: str
    response: str


def function_pairs(name: str, source: str, stripped: str) -> Iterator[Pair]:
    """Yield a pair for each documented function and method of a source file, in its order.

    Left out are functions inside functions (they are part of a response), those with a shorter docstring than
    `MIN_DOCSTRING_CHARACTERS`, with nothing but a docstring or with more than `MAX_BODY_LINES` lines after it, and those
    that moving to the margin would change (strings over several lines).

    Args:
        name: the file's name.
        source: its text.
        stripped: its text without docstrings and comments, as `source_split.strip_prose` makes it.
    """
    lines, bare_lines = source.split("\n"), stripped.split("\n")
    # Both trees have the same functions in the same order.
    for (path, function), (_, bare) in zip(_functions(parse(source)), _functions(parse(stripped)), strict=True):
        docstring = ast.get_docstring(function)
        if docstring is None or len(docstring) < MIN_DOCSTRING_CHARACTERS or len(function.body) == 1:
            continue
        signature, body = _signature_and_body(bare, bare_lines)
        if not 0 < len(body) <= MAX_BODY_LINES:
            continue
        margin = bare_lines[bare.lineno - 1][: bare.col_offset]
        prompt = INSTRUCTION + _from_margin([*signature, *_docstring_lines(function, lines)], margin)
        response = _from_margin(body, margin)
        if _is_function(prompt + response, bare, docstring):
            yield Pair(f"{name}:{function.lineno}:{path}", name, prompt, response)


def without_duplicates(pairs: Iterable[Pair], seen: set[str]) -> Iterator[Pair]:
    """Yield the pairs whose prompt and response are both not in `seen`, and put them there."""
    for pair in pairs:
        if pair.prompt not in seen and pair.response not in seen:
            seen |= {pair.prompt, pair.response}
            yield pair


def _functions(node: ast.AST, path: str = "") -> Iterator[tuple[str, _Function]]:
    """Yield qualified name and node of every function that is not inside another one, in source order."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Function):
            yield path + child.name, child
        else:
            yield from _functions(child, f"{path}{child.name}." if isinstance(child, ast.ClassDef) else path)


def _signature_and_body(function: _Function, lines: list[str]) -> tuple[list[str], list[str]]:
    """The lines of a function without docstring up to its body, and those of it; none where they share a line."""
    start, first = _first_line(function), _first_line(function.body[0])
    if lines[first - 1][: function.body[0].col_offset].strip():
        return [], []
    signature = [line for line in lines[start - 1 : first - 1] if line.strip()]
    return signature, lines[first - 1 : function.end_lineno]


def _first_line(node: ast.stmt) -> int:
    """The number of a statement's first line, which may be a decorator's."""
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _docstring_lines(function: _Function, lines: list[str]) -> list[str]:
    """The lines of a function's docstring, as they are quoted and indented in the file."""
    statement = function.body[0]
    assert statement.end_lineno is not None
    *others, last = lines[statement.lineno - 1 : statement.end_lineno]
    # Columns are bytes of UTF-8.
    return [*others, last.encode()[: statement.end_col_offset].decode()]


def _from_margin(lines: list[str], margin: str) -> str:
    return "".join(line.removeprefix(margin) + "\n" for line in lines)


def _is_function(text: str, bare: _Function, docstring: str) -> bool:
    """Whether `text` is the function `bare` with that docstring, but for space at the docstring's end."""
    try:
        tree = parse(text)
    except (SyntaxError, ValueError):
        return False
    found = tree.body[0]
    if len(tree.body) > 1 or not isinstance(found, _Function):
        return False
    if (ast.get_docstring(found) or "").rstrip() != docstring.rstrip():
        return False
    return ast.dump(without_docstrings(tree).body[0]) == ast.dump(bare)
