"""Tokenizers, chat templates, and records of instruction data."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.demo.tokenizer import train_tokenizer
from data_pipeline.encoding.contents import check_record
from data_pipeline.encoding.examples import Encoder
from data_pipeline.encoding.loading import load_tokenizer
from data_pipeline.encoding.tokenizer import Tokenizer
from data_pipeline.errors import PipelineError
from tests.fuzz.target import Target
from tests.fuzz.targets.kept_tokens import TEXT

TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'user' %}{{ raise_exception('no') }}{% endif %}"
    "<|{{ message['role'] }}|>{{ message.content | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHAT = [
    {"role": "user", "content": "the fox"},
    {"role": "assistant", "content": "jumps", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
    {"from": "human", "value": "the dog"},
    {"from": "gpt", "value": "sleeps"},
]
RECORDS = {
    "text": {"text": "the old yard"},
    "prompt": {"prompt": "the quick", "response": "brown fox"},
    "alpaca": {"instruction": "jump", "input": "over", "output": "the lazy dog"},
    "chat": {"messages": CHAT, "tools": [{"type": "function", "function": {"name": "f"}}]},
}
SOURCES = [
    *(SourceConfig(path="x", kind=kind) for kind in RECORDS),
    SourceConfig(path="x", kind="prompt", template="Q: {prompt}\n{more}"),
    SourceConfig(path="x", kind="alpaca", template="{instruction} {input}"),
]


@functools.cache
def _model() -> bytes:
    return train_tokenizer([[TEXT], [TEXT.upper()]], 340)


def _sentencepiece() -> dict[str, bytes]:
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": TEMPLATE,
              "added_tokens_decoder": {"340": {"content": "<|x|>", "special": True}}}  # fmt: skip
    return {
        "tokenizer.model": _model(),
        "tokenizer_config.json": json.dumps(config).encode(),
        "special_tokens_map.json": b'{"unk_token": "<unk>"}',
        "added_tokens.json": b'{"<|y|>": 341}',
        "chat_template.jinja": TEMPLATE.encode(),
    }


def _tokenizer_json() -> dict[str, bytes]:
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers, trainers

    fast = Fast(models.BPE(unk_token=None, byte_fallback=False))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    fast.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    )
    files = _sentencepiece()
    del files["tokenizer.model"], files["chat_template.jinja"]
    return {**files, "tokenizer.json": fast.to_str().encode()}


def _read_tokenizer(name: str) -> Any:
    def read(folder: Path) -> None:
        """Text is encoded, and an example of a chat made, where there is a template."""
        tokenizer = load_tokenizer(folder / name, "reference")
        ids = tokenizer.encode_ids("the fox jumps\n\n</s> Grüße 世界\x00")
        assert all(0 <= token < tokenizer.vocab_size for token in ids.tolist())
        data = DataConfig(sources={}, tokenizer=folder / name)
        Encoder(SOURCES[3], data, tokenizer).encode(RECORDS["chat"])

    return read


@functools.cache
def _tokenizer() -> tuple[Tokenizer, Path, Any]:
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "tokenizer.model"
    path.write_bytes(_model())
    path.with_name("chat_template.jinja").write_text(TEMPLATE)
    return load_tokenizer(path, "reference"), path, folder


@functools.cache
def _encoders() -> list[Encoder]:
    tokenizer, path, _ = _tokenizer()
    return [Encoder(source, DataConfig(sources={}, tokenizer=path), tokenizer) for source in SOURCES]


def _read_records(folder: Path) -> None:
    """A record that can't be encoded is refused with a reason; one that can has ids of the vocabulary."""
    try:
        records = [json.loads(line) for line in (folder / "records.jsonl").read_bytes().split(b"\n") if line]
    except (OSError, ValueError, RecursionError):
        return
    refusals = []
    for record in filter(lambda record: isinstance(record, dict), records):
        for source, encoder in zip(SOURCES, _encoders(), strict=True):
            reason = check_record(source, record)
            try:
                ids, is_target = encoder.encode(record)
            except PipelineError as error:
                refusals.append(str(error))
                continue
            assert reason is None
            assert all(0 <= token < 340 for token in ids.tolist())
            assert is_target is None or len(is_target) == len(ids)
    assert all(refusals)


TARGETS = [
    Target(name="tokenizer.model", make=_sentencepiece, read=_read_tokenizer("tokenizer.model"), errors=(PipelineError,),
           says=("chat template", "message", "cannot be rendered", "to predict")),
    Target(name="tokenizer.json", make=_tokenizer_json, read=_read_tokenizer("tokenizer.json"), errors=(PipelineError,),
           says=("chat template", "message", "cannot be rendered", "to predict")),
    Target(name="records", make=lambda: {"records.jsonl": b"".join(json.dumps(r).encode() + b"\n" for r in RECORDS.values())},
           read=_read_records),
]  # fmt: skip
