"""Tokenizers: what begins and ends a text, what is added to it, and text that comes back whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from evals.encoder import Codec, load_codec, load_encoder, tokenizer_fingerprint
from evals.errors import EvalError

LLAMA = Path(__file__).parents[4] / "shared" / "data" / "llama_tokenizer.model"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A folder with Llama 2's sentencepiece model."""
    if not LLAMA.is_file():
        pytest.skip("the shared data folder is not beside the repository")
    (tmp_path / "tokenizer.model").write_bytes(LLAMA.read_bytes())
    return tmp_path


def write_json(folder: Path, *, bos: str = "<s>", adds: bool = True, config: dict[str, Any] | None = None) -> Path:
    """A tokenizer.json of one token per character."""
    vocabulary = {"<unk>": 0, bos: 1, "</s>": 2, "[END]": 3} | {chr(code): code for code in range(32, 127)} | {"\n": 10}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.add_special_tokens([bos, "</s>", "[END]"])
    if adds:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, 1)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("adds", [True, False])
def test_the_post_processor_says_what_is_added(adds: bool, tmp_path: Path) -> None:
    codec = load_codec(write_json(tmp_path, adds=adds))
    assert (codec.bos_id, codec.eos_id, codec.eos_text) == (1, 2, "</s>")
    assert codec.is_bos_added is adds
    assert list(codec.encode("ab</s>")) == [97, 98, *map(ord, "</s>")], "text is text, whatever it looks like"
    assert codec.decode([1, 97, 98, 2]) == "ab"


def test_the_config_names_the_tokens(tmp_path: Path) -> None:
    config = {"bos_token": {"content": "[B]"}, "eos_token": "[END]"}
    codec = load_codec(write_json(tmp_path, bos="[B]", config=config))
    assert (codec.bos_id, codec.eos_id, codec.eos_text, codec.is_bos_added) == (1, 3, "[END]", True)
    # Names that the tokenizer does not know are no names.
    codec = load_codec(write_json(tmp_path, bos="[B]", config={"bos_token": "[X]", "eos_token": None}))
    assert (codec.bos_id, codec.eos_id, codec.is_bos_added) == (None, 2, False)
    assert codec.prefix_id == 2
    (tmp_path / "tokenizer_config.json").write_text("[")
    assert load_codec(tmp_path).eos_id == 2


def test_a_text_needs_something_before_it() -> None:
    plain = Codec(encode=list, decode=str, bos_id=None, eos_id=None, is_bos_added=False)
    with pytest.raises(EvalError, match="neither a beginning-of-text nor an end-of-text token"):
        _ = plain.prefix_id


@pytest.mark.parametrize(("config", "adds"), [(None, True), ({"add_bos_token": False}, False), ({}, True)])
def test_sentencepiece_adds_unless_told(config: dict[str, Any] | None, adds: bool, llama: Path) -> None:
    if config is not None:
        (llama / "tokenizer_config.json").write_text(json.dumps(config))
    codec = load_codec(llama)
    assert (codec.bos_id, codec.eos_id, codec.eos_text, codec.is_bos_added) == (1, 2, "</s>", adds)


@pytest.mark.parametrize("text", ["    return x\n", "  x", "x", " x", "\n\n    y = 1", "", "é"])
def test_indentation_after_a_line_end_survives(text: str, llama: Path) -> None:
    codec = load_codec(llama)
    prompt = list(codec.encode("def f(x):\n"))
    whole = list(codec.encode("def f(x):\n" + text))
    assert whole[: len(prompt)] == prompt
    assert codec.decode_after_newline(whole[len(prompt) :]) == text


def test_one_space_is_lost_without_it(llama: Path) -> None:
    codec = load_codec(llama)
    ids = list(codec.encode("\n    return"))[2:]
    assert codec.decode(ids) == "   return"
    assert codec.decode_after_newline(ids) == "    return"


def test_bytewise_tokenizers_lose_nothing(tmp_path: Path) -> None:
    codec = load_codec(write_json(tmp_path))
    assert codec.decode_after_newline(codec.encode("  x")) == "  x"


def test_the_fingerprint_is_the_files(tmp_path: Path) -> None:
    folder = write_json(tmp_path)
    expected = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    assert tokenizer_fingerprint(folder) == tokenizer_fingerprint(folder / "tokenizer.json") == expected


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"no tokenizer there; give a tokenizer.model or a tokenizer.json"):
        load_codec(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(EvalError, match=r"tokenizer.json: cannot be opened as a tokenizer"):
        load_encoder(tmp_path)
