"""Chats as the model's own template writes them, and which part of the text the assistant has written.

A template that marks the assistant's text by {% generation %} says it itself. For any other one, a turn is what
rendering the chat up to and with the turn adds to rendering the chat before it with the prompt to generate. That needs
a template that leaves earlier turns as they were; one that does not is an error.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.encoding.records import BadRecordError
from data_pipeline.encoding.reference_tokenizer import valid_unicode
from data_pipeline.encoding.tokenizer import Tokenizer
from data_pipeline.errors import PipelineError

Message = dict[str, Any]
Span = tuple[int, int]

_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
_MARKS_TURNS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_DATE = "26 Jul 2024"
"""What templates with a date are given: the day that Llama 3.1's names by default. Data must not change overnight."""


class ChatTemplateError(PipelineError):
    """There is no chat template, or it cannot serve for training; the message names it."""


class ChatTemplate:
    """A chat template with the names of its tokenizer's special tokens.

    Attributes:
        fingerprint: hex sha256 of everything that decides the text of a chat.
    """

    def __init__(self, tokenizer: Tokenizer, chat_template: Path | None = None) -> None:
        """Find the template: the given file, or the one that comes with the tokenizer.

        Raises:
            ChatTemplateError: there is none, or it is no valid template.
        """
        self._template, self._origin = _find_template(tokenizer, chat_template)
        self._names = tokenizer.named_tokens
        self._special = _any_of(tokenizer.special_names)
        self._unknown = _any_of(tokenizer.unknown_names)
        self._marks_turns = bool(_MARKS_TURNS.search(self._template))
        if "strftime_now" in self._template and "date_string" not in self._template:
            raise ChatTemplateError(
                f"the chat template {self._origin} writes today's date, so that the same data would be other data "
                "tomorrow; copy it, replace strftime_now(…) by a date, and name the copy in chat_template"
            )
        decisive = json.dumps([self._template, sorted(self._names.items()), _DATE])
        self.fingerprint = hashlib.sha256(decisive.encode()).hexdigest()
        self._check_syntax()

    def render(self, chat: list[Message], tools: list[Any] | None = None) -> tuple[str, list[Span]]:
        """The text of a chat, and the character ranges the assistant has written, in order.

        Args:
            chat: the messages, as read_chat gives them.
            tools: the tools the assistant may call, likewise.

        Raises:
            BadRecordError: this is no chat for this template, or it holds the name of a special token.
            ChatTemplateError: the template cannot serve for training.
        """
        for text in _texts([chat, tools]):
            if found := self._special.search(text):
                raise BadRecordError(
                    f"has {found[0]!r} inside a message, which is the name of a special token and would be taken for it; "
                    "remove or rewrite it"
                )
        text, spans = self._marked(chat, tools) if self._marks_turns else self._compared(chat, tools)
        if found := self._unknown.search(text):
            raise ChatTemplateError(
                f"the chat template {self._origin} writes {found[0]}, a token that was added to the model and that its "
                "tokenizer.model does not have; set tokenizer to the tokenizer.json of the model"
            )
        return text, [span for span in spans if span[0] < span[1]]

    def _marked(self, chat: list[Message], tools: list[Any] | None) -> tuple[str, list[Span]]:
        texts, spans = self._render(chat, tools, return_assistant_tokens_mask=True)
        return texts[0], [(start, end) for start, end in spans[0]]

    def _compared(self, chat: list[Message], tools: list[Any] | None) -> tuple[str, list[Span]]:
        whole = self._text(chat, tools)
        spans: list[Span] = []
        for number, message in enumerate(chat):
            if message.get("role") != "assistant":
                continue
            before = self._text(chat[:number], tools, add_generation_prompt=True)
            through = self._text(chat[: number + 1], tools)
            if not (through.startswith(before) and whole.startswith(through)):
                raise ChatTemplateError(
                    f"the chat template {self._origin} writes earlier turns in another way once there are later ones, "
                    f"so that it cannot be said what the assistant wrote (message {number + 1} of the first such chat); "
                    "mark its text in the template by {% generation %} … {% endgeneration %}, and name that file in "
                    "chat_template"
                )
            # White space behind the name of the token that ends a turn is the template's, not the assistant's.
            ends_of_tokens = [found.end() for found in self._special.finditer(through, len(before))]
            end = ends_of_tokens[-1] if ends_of_tokens and not through[ends_of_tokens[-1] :].strip() else len(through)
            spans.append((len(before), end))
        return whole, spans

    def _text(self, chat: list[Message], tools: list[Any] | None, **options: Any) -> str:
        return str(self._render(chat, tools, **options)[0][0])

    def _render(self, chat: list[Message], tools: list[Any] | None, **options: Any) -> Any:
        from jinja2 import TemplateError, TemplateSyntaxError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            return render_jinja_template(
                [chat], tools=tools, chat_template=self._template, date_string=_DATE, **self._names, **options
            )
        except TemplateSyntaxError as error:
            raise ChatTemplateError(
                f"the chat template {self._origin} is no valid Jinja: line {error.lineno}: {error.message}"
            ) from error
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise BadRecordError(f"cannot be rendered by the chat template {self._origin}: {error}") from error

    def _check_syntax(self) -> None:
        try:
            self._text([{"role": "user", "content": "a"}], None)
        except BadRecordError:
            # It may well want another conversation than this one.
            return


def read_chat(messages: object, tools: object = None) -> tuple[list[Message], list[Any] | None]:
    """The messages of a chat and its tools, in the one form that templates expect.

    Args:
        messages: a list of {"role": …, "content": …} or {"from": …, "value": …}.
        tools: the tools the assistant may call, as JSON schemas or JSON text of them.

    Raises:
        BadRecordError: this is no chat, or one without a message of the assistant.
    """
    chat = [_message(message) for message in _list_of(messages, "messages")]
    schemas = None if tools is None else _schemas(tools)
    if not any(message["role"] == "assistant" for message in chat):
        raise BadRecordError("has no message of the role assistant, so there is nothing to learn from it")
    return chat, schemas


def _find_template(tokenizer: Tokenizer, chat_template: Path | None) -> tuple[str, str]:
    """The template's text and where it is."""
    folder = tokenizer.files[0].parent
    file = chat_template or folder / "chat_template.jinja"
    if chat_template is not None or file.is_file():
        try:
            return file.read_text(encoding="utf-8"), str(file)
        except (OSError, UnicodeDecodeError) as error:
            raise ChatTemplateError(f"the chat template {file} cannot be read ({error}); name another file") from error
    config = folder / "tokenizer_config.json"
    content = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else None
    found = content.get("chat_template") if isinstance(content, dict) else None
    if isinstance(found, list):
        # Templates by name; the one for plain chats is called default.
        plain = [entry for entry in found if isinstance(entry, dict) and entry.get("name") == "default"]
        found = plain[-1].get("template") if plain else None
    if not isinstance(found, str):
        raise ChatTemplateError(
            f"there is no chat template beside the tokenizer {tokenizer.files[0]} (chat_template.jinja, or in "
            "tokenizer_config.json); copy it from the model, or name a Jinja file in chat_template"
        )
    return found, f"in {config}"


def _message(message: object) -> Message:
    """A message with role and content, as templates expect it."""
    if not isinstance(message, Mapping):
        raise BadRecordError(
            f"has a message that is {type(message).__name__}, where an object with role and content is needed"
        )
    if "role" not in message and "from" in message:
        role = message["from"]
        message = {
            "role": _SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role,
            "content": message.get("value"),
        }
    if not isinstance(message.get("role"), str):
        raise BadRecordError('has a message without "role"; write messages as {"role": "user", "content": "…"}')
    # Tables give every message every field; a field without value is one the message does not have.
    kept = {name: value for name, value in message.items() if value is not None or name == "content"}
    result = _valid(kept)
    assert isinstance(result, dict)
    return result


def _valid(value: Any) -> Any:
    """`value` with valid Unicode in all its texts, so that places in the text stay what they are."""
    if isinstance(value, str):
        return valid_unicode(value)
    if isinstance(value, Mapping):
        return {name: _valid(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_valid(item) for item in value]
    return value


def _schemas(tools: object) -> list[Any]:
    """The tools of a record, which may be JSON text."""
    try:
        parsed = json.loads(tools) if isinstance(tools, str) else tools
    except (ValueError, RecursionError) as error:
        raise BadRecordError(f"has tools that are no valid JSON ({error})") from error
    return [_valid(tool) for tool in _list_of(parsed, "tools")]


def _list_of(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadRecordError(f"has {type(value).__name__} as {what}, where a list is needed")
    if not value and what == "messages":
        raise BadRecordError("has no messages")
    return value


def _texts(value: Any) -> Iterator[str]:
    """Every text in a nested value, names of fields included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield str(name)
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _any_of(names: Sequence[str]) -> re.Pattern[str]:
    """A pattern of any of `names`."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
