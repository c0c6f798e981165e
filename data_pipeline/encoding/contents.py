"""What a record holds, by the kind of its source: all that can be said of it without a tokenizer."""

from __future__ import annotations

import string
from functools import lru_cache
from typing import Any

from data_pipeline.config import SourceConfig
from data_pipeline.encoding.chat import Message, read_chat
from data_pipeline.encoding.records import BadRecordError, Record, text_of
from data_pipeline.errors import PipelineError

ALPACA_WITH_INPUT = """\
Below is an instruction that describes a task, paired with an input that provides further context. Write a response \
that appropriately completes the request.

### Instruction:
{instruction}

### Input:
{input}

### Response:"""
"""The prompt of Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca, train.py) for records with an input."""

ALPACA = """\
Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Response:"""
"""The prompt of Stanford Alpaca for records without one."""


def check_record(source: SourceConfig, record: Record) -> str | None:
    """Why a record of `source` cannot be encoded, None where only a tokenizer could find a reason.

    Raises:
        PipelineError: the source's template cannot be filled in.
    """
    read = {"text": read_text, "prompt": read_answer, "alpaca": read_answer, "chat": read_messages}[source.kind]
    try:
        read(source, record)
    except BadRecordError as error:
        return str(error)
    return None


def read_text(source: SourceConfig, record: Record) -> str:
    """The document in a record of kind text; an empty one is none, and no error. Raises BadRecordError."""
    return text_of(record, source.text_field, "text_field")


def read_answer(source: SourceConfig, record: Record) -> tuple[str, str]:
    """The prompt, as it is written to the model, and the response in a record of kind prompt or alpaca.

    Raises:
        BadRecordError: one of them is missing or no text, or the response is empty.
    """
    template = source.template
    if source.kind == "prompt":
        setting = "prompt_field" if template is None else "template"
        values = {name: text_of(record, name, setting) for name in prompt_fields(source)}
        prompt = values[source.prompt_field] if template is None else template.format(**values)
        return prompt, _response_of(record, source.response_field, "response_field")
    if record.get("input") is None:
        # A record without input has an empty one.
        record = {**record, "input": ""}
    values = {name: text_of(record, name, "kind or template") for name in prompt_fields(source)}
    written = template or (ALPACA_WITH_INPUT if values["input"] else ALPACA)
    return written.format(**values), _response_of(record, "output", "kind")


def read_messages(source: SourceConfig, record: Record) -> tuple[list[Message], list[Any] | None]:
    """The messages and tools in a record of kind chat. Raises BadRecordError."""
    if source.messages_field not in record:
        text_of(record, source.messages_field, "messages_field")
    return read_chat(record[source.messages_field], record.get("tools"))


def prompt_fields(source: SourceConfig) -> list[str]:
    """The fields that the prompt of a record of kind prompt or alpaca is made of.

    Raises:
        PipelineError: the source's template cannot be filled in.
    """
    if source.kind == "prompt" and source.template is None:
        return [source.prompt_field]
    return list(_fields_of(source.template or ALPACA_WITH_INPUT))


@lru_cache
def _fields_of(template: str) -> tuple[str, ...]:
    """The fields that a template names, once each."""
    fields = tuple(dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(template) if name is not None))
    try:
        template.format(**dict.fromkeys(fields, ""))
    except (ValueError, LookupError, AttributeError) as error:
        raise PipelineError(f"template cannot be filled in ({error}); write fields as {{name}}") from error
    return fields


def _response_of(record: Record, name: str, setting: str) -> str:
    """The response in a record, which is never empty."""
    response = text_of(record, name, setting)
    if not response.strip():
        raise BadRecordError(f"has an empty response in the field {name!r}, so there is nothing to learn from it")
    return response
