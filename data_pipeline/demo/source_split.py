"""Split a Python source file into its prose (docstrings) and its code (no docstrings, no comments)."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_LITERALS = {tokenize.STRING, tokenize.NUMBER} | (
    {tokenize.FSTRING_MIDDLE} if hasattr(tokenize, "FSTRING_MIDDLE") else set()
)
_MAX_BLANK_LINES = 2


def parse(source: str) -> ast.Module:
    """Parse `source` without the warnings that old escapes cause; raises SyntaxError or ValueError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


def docstrings(tree: ast.Module) -> list[str]:
    """The docstrings of a module, its classes and functions, cleaned of indentation, in source order."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, _DOCUMENTED)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return [text for node in nodes if (text := ast.get_docstring(node))]


def without_docstrings(tree: ast.Module) -> ast.Module:
    """Remove every docstring of `tree` in place; a body that held nothing else becomes `pass`."""
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
            if not node.body and not isinstance(node, ast.Module):
                node.body.append(ast.Pass())
    return tree


def strip_prose(source: str) -> str:
    """Return `source` without docstrings and comments, its formatting otherwise kept.

    Lines that become empty disappear, and runs of blank lines shrink to two at most.

    Raises:
        ValueError: the result would not mean the same program (a comment that continues a line after a backslash).
        SyntaxError: `source` does not parse.
    """
    lines = source.split("\n")
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    # Comments first: cutting the end of a line moves no docstring.
    emptied = _remove_comments(lines, tokens)
    emptied |= _remove_docstrings(lines, parse(source))
    inside_strings = {
        row - 1 for token in tokens for row in range(token.start[0] + 1, token.end[0] + 1) if token.type in _LITERALS
    }
    stripped = _join(lines, drop=emptied, keep=inside_strings - emptied)
    if ast.dump(parse(stripped)) != ast.dump(without_docstrings(parse(source))):
        raise ValueError("removing docstrings and comments would change the program")
    return stripped


def literal_share(source: str) -> float:
    """The share, between 0 and 1, of a source's token characters that belong to string and number literals."""
    total = literal = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        size = len(token.string.strip())
        total += size
        literal += size if token.type in _LITERALS else 0
    return literal / max(total, 1)


def _remove_docstrings(lines: list[str], tree: ast.Module) -> set[int]:
    """Cut the docstrings out of `lines` in place; returns the rows left with nothing, counted from 0."""
    emptied: set[int] = set()
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None
    ]
    # From the last to the first, so that a cut never moves the columns of one still to come.
    for node in sorted(found, key=lambda node: (node.body[0].lineno, node.body[0].col_offset), reverse=True):
        statement = node.body[0]
        first, last = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
        before = _byte_slice(lines[first], 0, statement.col_offset)
        after = _byte_slice(lines[last], statement.end_col_offset, None)
        alone = len(node.body) == 1 and not isinstance(node, ast.Module)
        lines[first] = before + ("pass" + after if alone else re.sub(r"^\s*;\s*", "", after))
        lines[first + 1 : last + 1] = [""] * (last - first)
        emptied.update(range(first + 1, last + 1))
        if not lines[first].strip():
            emptied.add(first)
    return emptied


def _byte_slice(line: str, start: int | None, end: int | None) -> str:
    """Slice `line` by UTF-8 byte offsets, the unit of ast's columns."""
    return line.encode()[start:end].decode()


def _remove_comments(lines: list[str], tokens: list[tokenize.TokenInfo]) -> set[int]:
    """Cut the comments out of `lines` in place; returns the rows left with nothing, counted from 0."""
    emptied: set[int] = set()
    for token in tokens:
        if token.type != tokenize.COMMENT:
            continue
        row = token.start[0] - 1
        lines[row] = lines[row].removesuffix(token.string).rstrip()
        if not lines[row]:
            emptied.add(row)
    return emptied


def _join(lines: list[str], drop: set[int], keep: set[int]) -> str:
    kept: list[str] = []
    blank_run = 0
    for row, line in enumerate(lines):
        if row in drop:
            continue
        blank = not line.strip() and row not in keep
        blank_run = blank_run + 1 if blank else 0
        if blank_run <= _MAX_BLANK_LINES and (kept or not blank):
            kept.append("" if blank else line)
    while kept and not kept[-1]:
        kept.pop()
    return "\n".join(kept) + "\n"
