"""What a source gives: records, and what makes one unusable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_pipeline.errors import PipelineError

Record = Mapping[str, Any]
"""The fields of one document or example, by name."""


class BadRecordError(PipelineError):
    """A record holds no document or example; the message says why, and the caller adds where."""


def text_of(record: Record, name: str, setting: str) -> str:
    """The text in the field `name`.

    Args:
        record: the record.
        name: the field.
        setting: the setting that chose it, for the message.

    Raises:
        BadRecordError: there is no such field, or it is not text.
    """
    try:
        text = record[name]
    except KeyError:
        fields = ", ".join(sorted(map(str, record))) or "none"
        raise BadRecordError(f"has no field {name!r}; set {setting} to one of its fields: {fields}") from None
    if not isinstance(text, str):
        raise BadRecordError(f"has {type(text).__name__} in the field {name!r}, where text is needed")
    return text
