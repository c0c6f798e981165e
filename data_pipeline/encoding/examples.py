"""Records to examples: token ids, and which of them the model learns to predict.

Each kind of source has its own function from a record to its example. They are pure: equal records, settings and
tokenizer give equal examples, on every rank and in every process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.encoding.chat import ChatTemplate
from data_pipeline.encoding.contents import (
    ALPACA,
    ALPACA_WITH_INPUT,
    prompt_fields,
    read_answer,
    read_messages,
    read_text,
)
from data_pipeline.encoding.records import BadRecordError, Record
from data_pipeline.encoding.tokenizer import Tokenizer, special_ids

__all__ = ["ALPACA", "ALPACA_WITH_INPUT", "BadRecordError", "Encoder", "Example", "Record", "cut"]

Ids = NDArray[np.int32]

_NO_IDS: Ids = np.empty(0, dtype=np.int32)
_RULES = 1
"""Goes up whenever equal records get other ids or targets than before: encoded sources are then made again."""


class Example(NamedTuple):
    """The tokens of one document or example.

    Attributes:
        ids: int32 [tokens]; none for an empty document, which is silently passed over.
        is_target: bool [tokens], whether token i is to be predicted (there is a loss on it); None: all of them.
            The first token is never predicted, whatever it says here.
    """

    ids: Ids
    is_target: NDArray[np.bool_] | None = None


def cut(example: Example, seq_len: int) -> Example:
    """`example` without what is beyond `seq_len` tokens; there may be no target left."""
    ids, is_target = example
    return Example(ids[:seq_len], None if is_target is None else is_target[:seq_len])


class Encoder:
    """Encodes the records of one source.

    Attributes:
        columns: the fields of a record that are read.
        required: those of them that no record may lack; `input` (kind alpaca) and `tools` (kind chat) it may.
        fingerprint: everything that decides ids and targets of a record, except the tokenizer's file.
    """

    columns: list[str]

    def __init__(self, source: SourceConfig, data: DataConfig, tokenizer: Tokenizer) -> None:
        """Prepare to encode.

        Raises:
            TokenizerError: the tokenizer lacks a token that the settings ask for.
            ChatTemplateError: kind chat, and there is no usable template.
            PipelineError: the source's template cannot be filled in.
        """
        # In a chat, the template says how turns end.
        eos = data.eos and source.kind != "chat"
        self._bos, self._eos = special_ids(tokenizer, data.tokenizer, bos=data.bos, eos=eos)
        self._tokenizer = tokenizer
        self._source = source
        self.fingerprint: dict[str, Any] = {"rules": _RULES, "kind": source.kind, "bos": self._bos, "eos": self._eos}
        prepare: dict[str, Callable[[DataConfig], Callable[[Record], Example]]] = {
            "text": self._text_encoder,
            "prompt": self._prompt_encoder,
            "alpaca": self._alpaca_encoder,
            "chat": self._chat_encoder,
        }
        self._encode = prepare[source.kind](data)
        optional = {"alpaca": "input", "chat": "tools"}.get(source.kind)
        self.required = [name for name in self.columns if name != optional]

    def encode(self, record: Record) -> Example:
        """The example in `record`.

        Raises:
            BadRecordError: there is none; the message does not say where the record is.
            ChatTemplateError: the chat template cannot serve for training.
        """
        return self._encode(record)

    def _text_encoder(self, data: DataConfig) -> Callable[[Record], Example]:
        name = self._source.text_field
        self.columns = [name]
        self.fingerprint |= {"text_field": name}

        def encode(record: Record) -> Example:
            text = read_text(self._source, record)
            return Example(self._framed(self._tokenizer.encode_ids(text))) if text else Example(_NO_IDS)

        return encode

    def _prompt_encoder(self, data: DataConfig) -> Callable[[Record], Example]:
        fields, response_field = prompt_fields(self._source), self._source.response_field
        self.columns = list(dict.fromkeys([*fields, response_field]))
        self.fingerprint |= {"prompt": fields, "response": response_field, "template": self._source.template}
        return self._answered

    def _alpaca_encoder(self, data: DataConfig) -> Callable[[Record], Example]:
        template = self._source.template
        self.columns = list(dict.fromkeys([*prompt_fields(self._source), "output"]))
        self.fingerprint |= {"template": [template] if template else [ALPACA, ALPACA_WITH_INPUT]}
        return self._answered

    def _chat_encoder(self, data: DataConfig) -> Callable[[Record], Example]:
        name = self._source.messages_field
        template = ChatTemplate(self._tokenizer, data.chat_template)
        self.columns = [name, "tools"]
        self.fingerprint |= {"messages": name, "template": template.fingerprint}

        def encode(record: Record) -> Example:
            text, spans = template.render(*read_messages(self._source, record))
            ids, starts, ends = self._tokenizer.encode_marked(text)
            is_target = np.zeros(len(ids), dtype=np.bool_)
            for start, end in spans:
                is_target |= (starts < end) & ((ends > start) | (starts >= start))
            if self._bos and list(ids[:1]) != self._bos:
                ids, is_target = self._framed(ids), np.concatenate([np.zeros(1, np.bool_), is_target])
            return _with_target(ids, is_target)

        return encode

    def _answered(self, record: Record) -> Example:
        """A prompt and its response, whose tokens are the targets.

        The two are encoded as one text, as they will be read. Targets are what comes after the tokens that the prompt
        alone begins with too, so that the model learns to go on from where it will start.
        """
        prompt, response = read_answer(self._source, record)
        ids = self._tokenizer.encode_ids(prompt + response)
        alone = self._tokenizer.encode_ids(prompt)
        shared = min(len(ids), len(alone))
        differs = np.flatnonzero(ids[:shared] != alone[:shared])
        first = len(self._bos) + (int(differs[0]) if len(differs) else shared)
        framed = self._framed(ids)
        return _with_target(framed, np.arange(len(framed)) >= first)

    def _framed(self, ids: Ids) -> Ids:
        """`ids` between BOS and EOS, as the settings say."""
        start, stop = len(self._bos), len(self._bos) + len(ids)
        framed = np.empty(stop + len(self._eos), dtype=np.int32)
        framed[:start] = self._bos
        framed[start:stop] = ids
        framed[stop:] = self._eos
        return framed


def _with_target(ids: Ids, is_target: NDArray[np.bool_]) -> Example:
    """The example, if a token of it can be predicted."""
    if not is_target[1:].any():
        raise BadRecordError("has no token to predict, so there is nothing to learn from it")
    return Example(ids, is_target)
