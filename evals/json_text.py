"""JSON and names of files as text that can be written again, whoever wrote them."""

from __future__ import annotations

import json
from typing import Any


def parse_json(data: bytes | str) -> Any:
    """The value in a JSON text; lone halves of surrogate pairs, which UTF-8 has no bytes for, become U+FFFD.

    JSON writes them as escapes, and what Python makes of a file's name that is not UTF-8 has them, for example in the text of
    an error.

    Raises:
        ValueError: it is no JSON, or nested too deep.
    """
    try:
        value = json.loads(data)
        escapes = (b"\\ud", b"\\uD") if isinstance(data, bytes) else ("\\ud", "\\uD")
        return _valid(value) if any(escape in data for escape in escapes) else value  # type: ignore[operator]
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def valid_unicode(text: str) -> str:
    """The text with lone halves of surrogate pairs as U+FFFD."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _valid(value: Any) -> Any:
    if isinstance(value, str):
        return valid_unicode(value)
    if isinstance(value, dict):
        return {valid_unicode(key): _valid(item) for key, item in value.items()}
    return [_valid(item) for item in value] if isinstance(value, list) else value
