"""Folders of files as inputs: valid ones, and strategies that make others of them.

An input is a `Files`, names and contents of a folder's files, so that any of them can be kept on disk and tried again. Four
kinds are made of a valid folder: `altered` puts any JSON value into its documents (.json, .jsonl, .toml), `damaged` flips, cuts,
inserts, repeats and swaps bytes of it, `foreign` puts any bytes in the place of a file, `odd` a folder or a link that leads nowhere.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from hypothesis import strategies as st


class Odd(Enum):
    """What may be in a file's place and is no file."""

    FOLDER = "an empty folder"
    NOWHERE = "a link to what is not there"
    ITSELF = "a link to itself"


Content = bytes | Odd
Files = Mapping[str, Content]
Draw = Callable[[st.SearchStrategy[Any]], Any]

_RAW = {
    "<deep list>": "[" * 3000 + "]" * 3000,
    "<deep enough>": "[" * 900 + "]" * 900,
    "<deep object>": '{"a":' * 3000 + "1" + "}" * 3000,
    "<unclosed>": "[" * 100_000,
    "<1e999>": "1e999",
    "<-1e999>": "-1e999",
    "<many digits>": "9" * 5000,
    "<date>": "2020-02-30",
    "<time>": "2020-02-03T04:05:06Z",
    "<nothing>": "",
}
"""What no Python value is written as; stands in documents as text until they are written."""

_WORDS = ("", " ", "a", "none", "true", "nan", "0", "-1", "1e999", "a.b", "../../x", "/", "/etc/passwd", "$HOME", "$NOT_SET/x", "~nobody/x",
          "{adapter.kind}", "{", "{}", "{0}", "\x00", "\n", "\x1b[2J", "\ud800", "\udfff\ud800", "🜚 наме", "e\u0301", "x" * 10_000,
          "file:///etc/passwd", "memory://x/y.jsonl", "s3://x", "<script>", "[red]", "%s", "2020-02-03T04:05:06+00:00", "9" * 400)  # fmt: skip
_NUMBERS = (0, 1, -1, 2, 3, 7, 255, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400,
            0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, math.nan, math.inf, -math.inf, True, False, None)  # fmt: skip
_SIMPLE = st.sampled_from((*_WORDS, *_NUMBERS, *_RAW)) | st.integers() | st.floats() | st.text(max_size=20)
VALUES = _SIMPLE | st.sampled_from(([], {}, [[]], [{}], {"": {}}, [None])) | st.recursive(
    _SIMPLE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5
)  # fmt: skip
"""Any JSON value, those that programs trip over more often."""

_CHUNKS = st.sampled_from((b"\0", b"\xff" * 4, b"\xff" * 8, b"\x7f" * 4, b"\0" * 8, b"\n", b"{}", b"[", b'"', b"\\ud800", b"\xef\xbb\xbf",
                           b"\xed\xa0\x80", b"NaN", b"9" * 30, b"\x80\0\0\0", b"\1\0\0\0\0\0\0\x80")) | st.binary(max_size=12)  # fmt: skip
_FEW = st.integers(1, 3)
_CHANGES = st.sampled_from(("value", "value", "value", "remove", "name", "copy"))
_DAMAGES = st.sampled_from(("flip", "flip", "set", "set", "cut", "insert", "remove", "repeat", "swap", "files"))


def inputs(valid: Mapping[str, bytes]) -> st.SearchStrategy[dict[str, Content]]:
    """Folders of all kinds that were made of a valid one."""
    documents = [name for name in valid if Path(name).suffix in _READ]
    kinds = [damaged(valid), damaged(valid), foreign(valid), odd(valid)]
    return st.one_of(*kinds, *([altered(valid, documents)] * 4 if documents else []))


@st.composite
def altered(draw: Draw, valid: Mapping[str, bytes], names: list[str]) -> dict[str, bytes]:
    """The valid folder with some values of its documents replaced, removed, renamed or put elsewhere."""
    files = dict(valid)
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=2)):
        suffix = Path(name).suffix
        try:
            document = _READ[suffix](files[name])
        except (ValueError, RecursionError):
            continue  # Altered a second time.
        for _ in range(draw(_FEW)):
            document = _with_change(draw, document)
        files[name] = _WRITTEN[suffix](document)
    return files


def _with_change(draw: Draw, document: Any) -> Any:
    """The document with one of its values changed, in place where it has any."""
    places = list(_places(document))
    if not places:
        return copy.deepcopy(draw(VALUES))
    # Not sampled_from, to which every list is a new strategy.
    owner, key = places[draw(st.integers(0, len(places) - 1))]
    how = draw(_CHANGES)
    if how == "remove":
        del owner[key]
    elif how == "name" and isinstance(owner, dict):
        owner[draw(st.sampled_from(_WORDS) | st.text(max_size=8))] = owner.pop(key)
    elif how == "copy":
        other, there = places[draw(st.integers(0, len(places) - 1))]
        owner[key] = copy.deepcopy(other[there])
    else:
        # A copy: the next change may be one of a part of it.
        owner[key] = copy.deepcopy(draw(VALUES))
    return document


def _places(value: Any) -> Any:
    """(owner, key) of every value in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _places(item)


@st.composite
def damaged(draw: Draw, valid: Mapping[str, bytes]) -> dict[str, bytes]:
    """The valid folder with some bytes changed, files swapped or gone."""
    files = dict(valid)
    names = sorted(files)
    for _ in range(draw(_FEW)):
        name = draw(st.sampled_from(names))
        how = draw(_DAMAGES)
        if how == "files":
            other = draw(st.sampled_from(names))
            if other == name:
                files.pop(name, None)
            elif name in files and other in files:
                files[name], files[other] = files[other], files[name]
        elif name in files:
            files[name] = _damaged(draw, files[name], how)
    return files


def _damaged(draw: Draw, data: bytes, how: str) -> bytes:
    at = draw(st.integers(0, max(0, len(data) - 1)))
    size = draw(st.integers(1, 16) | st.integers(1, max(1, len(data))))
    head, block, rest = data[:at], data[at : at + size], data[at + size :]
    match how:
        case "flip":
            changed = bytes([block[0] ^ 1 << draw(st.integers(0, 7))]) if block else b""
            return head + changed + block[1:] + rest
        case "set":
            chunk = draw(_CHUNKS)
            return head + chunk + data[at + len(chunk) :]
        case "cut":
            return head
        case "insert":
            return head + draw(_CHUNKS) + block + rest
        case "remove":
            return head + rest
        case "repeat":
            return head + block * draw(st.integers(2, 5)) + rest
        case _:
            return head + rest + block


@st.composite
def foreign(draw: Draw, valid: Mapping[str, bytes]) -> dict[str, bytes]:
    """The valid folder with any bytes in the place of one of its files."""
    name = draw(st.sampled_from(sorted(valid)))
    value = VALUES.map(lambda value: _WRITTEN[".json"](value))
    return {**valid, name: draw(st.binary(max_size=200) | st.text(max_size=100).map(_bytes) | value)}


@st.composite
def odd(draw: Draw, valid: Mapping[str, bytes]) -> dict[str, Content]:
    """The valid folder with something that is no file in the place of one of its files."""
    return {**valid, draw(st.sampled_from(sorted(valid))): draw(st.sampled_from(Odd))}


def put(files: Files, folder: Path) -> None:
    """Write the files into a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        match content:
            case bytes():
                path.write_bytes(content)
            case Odd.FOLDER:
                path.mkdir()
            case _:
                path.symlink_to("nowhere" if content is Odd.NOWHERE else path.name)


def read(folder: Path) -> dict[str, bytes]:
    """All files in and below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read_input(folder: Path) -> dict[str, Content]:
    """What was put into a folder."""
    links = {
        path: Odd.ITSELF if os.readlink(path) == path.name else Odd.NOWHERE
        for path in folder.rglob("*")
        if path.is_symlink()
    }
    empty = {path: Odd.FOLDER for path in folder.rglob("*") if path.is_dir() and not any(path.iterdir())}
    return {**read(folder), **{str(path.relative_to(folder)): content for path, content in (links | empty).items()}}


def json_bytes(value: Any) -> bytes:
    """A document as JSON."""
    return _raw(json.dumps(value)).encode()


def jsonl_bytes(values: Any) -> bytes:
    """A list of documents, a line each; anything else as JSON."""
    return b"".join(json_bytes(value) + b"\n" for value in values) if isinstance(values, list) else json_bytes(values)


def toml_bytes(table: Any) -> bytes:
    """A document as TOML of inline tables."""
    lines = (
        [f"{_key(key)} = {_toml(value)}\n" for key, value in table.items()]
        if isinstance(table, dict)
        else [_toml(table)]
    )
    return _bytes(_raw("".join(lines)))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower()


def _key(key: str) -> str:
    return json.dumps(key, ensure_ascii=False).replace("\x7f", "\\u007f")


def _raw(text: str) -> str:
    if "<" in text:
        for name, written in _RAW.items():
            text = text.replace(f'"{name}"', written)
    return text


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _read_lines(data: bytes) -> Any:
    return [json.loads(line) for line in data.splitlines()]


def _read_toml(data: bytes) -> Any:
    import tomllib

    return tomllib.loads(data.decode())


_READ: dict[str, Callable[[bytes], Any]] = {".json": json.loads, ".jsonl": _read_lines, ".toml": _read_toml}
_WRITTEN: dict[str, Callable[[Any], bytes]] = {".json": json_bytes, ".jsonl": jsonl_bytes, ".toml": toml_bytes}
