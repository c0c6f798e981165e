from __future__ import annotations

import json
from functools import cache
from itertools import groupby, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.encoding.loading import load_tokenizer
from data_pipeline.encoding.tokenizer import Tokenizer, TokenizerError, special_ids

LLAMA = Path(__file__).parents[5] / "shared" / "data" / "llama_tokenizer.model"


def write_tokenizer_json(folder: Path, special: tuple[str, ...] = ("<s>", "</s>")) -> Path:
    """A character-level tokenizer that truncates, pads and adds its BOS by itself, as files in the wild do."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    characters = "abcdefghijklmnopqrstuvwxyz </>\n"
    names = ["<unk>", *special]
    vocabulary = {token: number for number, token in enumerate([*names, *characters])}
    engine = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    engine.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    engine.add_special_tokens(list(special))
    if special:
        engine.post_processor = processors.TemplateProcessing(
            single=f"{special[0]} $A", special_tokens=[(special[0], vocabulary[special[0]])]
        )
    engine.enable_truncation(4)
    engine.enable_padding(length=6)
    path = folder / "tokenizer.json"
    engine.save(str(path))
    return path


@cache
def loaded(path: Path) -> Tokenizer:
    return load_tokenizer(path)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
def test_round_trip(tokenizer_path: Path, text: str) -> None:
    tokenizer = loaded(tokenizer_path)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_model(tokenizer_path: Path) -> None:
    tokenizer = load_tokenizer(str(tokenizer_path))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert not {1, 2} & set(tokenizer.encode("<s>a</s>"))
    assert max(tokenizer.encode("the é")) < tokenizer.vocab_size
    assert tokenizer.files == [tokenizer_path]
    assert len(tokenizer.fingerprint) == 64


def test_a_long_document_is_encoded_whole(tokenizer_path: Path, tmp_path: Path) -> None:
    text = "the dog sleeps on " * 20_000
    for path in (tokenizer_path, write_tokenizer_json(tmp_path)):
        tokenizer = load_tokenizer(path)
        assert tokenizer.decode(tokenizer.encode(text)).replace(" ", "") == text.replace(" ", "")


def test_lone_surrogates_become_replacement_characters(tokenizer_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_path)
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a�b"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "😀"


def test_tokenizer_json_ignores_padding_truncation_and_special_names(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer_json(tmp_path))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    ids = tokenizer.encode("ab</s>cd")
    assert len(ids) == 8
    assert not {1, 2} & set(ids)
    assert tokenizer.vocab_size == 34


def test_special_tokens_come_from_the_config_beside_tokenizer_json(tmp_path: Path) -> None:
    path = write_tokenizer_json(tmp_path, special=("<begin>", "<end>"))
    assert load_tokenizer(path).bos_id is None
    config = {"bos_token": {"content": "<begin>"}, "eos_token": "<end>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert [file.name for file in tokenizer.files] == ["tokenizer.json", "tokenizer_config.json"]


def test_sentencepiece_wins_in_a_folder_with_both(tokenizer_path: Path, tmp_path: Path) -> None:
    write_tokenizer_json(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_path.read_bytes())
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.fingerprint == load_tokenizer(tokenizer_path).fingerprint
    assert [file.name for file in tokenizer.files] == ["tokenizer.model", "tokenizer.json"]


def test_missing_special_token_is_an_error_only_when_asked_for(tmp_path: Path) -> None:
    path = write_tokenizer_json(tmp_path, special=("<begin>", "</s>"))
    tokenizer = load_tokenizer(path)
    assert special_ids(tokenizer, path, bos=False, eos=True) == ([], [2])
    with pytest.raises(TokenizerError, match=r"bos = true, .*tokenizer.json has no bos token; set bos = false"):
        special_ids(tokenizer, path, bos=True, eos=True)


def test_no_tokenizer_and_damaged_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="there is no tokenizer at"):
        load_tokenizer(tmp_path)
    for name in ("tokenizer.json", "tokenizer.model"):
        (tmp_path / name).write_text("{half")
        with pytest.raises(TokenizerError, match=f"{name} cannot be read"):
            load_tokenizer(tmp_path / name)


@pytest.mark.skipif(not LLAMA.is_file(), reason="the Llama tokenizer is not beside the repository")
def test_llama_ids_are_sentencepieces_own() -> None:
    tokenizer = load_tokenizer(LLAMA)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (32000, 1, 2)
    # Known ids of the Llama vocabulary; the common conversion joins the two spaces of "\n  from" into one piece.
    assert tokenizer.encode("Hello world") == [15043, 3186]
    assert tokenizer.encode("\n  from") == [29871, 13, 29871, 515]


@pytest.fixture
def every_tokenizer(tokenizer_path: Path, tmp_path: Path) -> list[Tokenizer]:
    paths = [tokenizer_path, write_tokenizer_json(tmp_path), *([LLAMA] if LLAMA.is_file() else [])]
    return [load_tokenizer(path, "reference") for path in paths]


MARKED = ["the dog", " <s>", "</s>", "é中😀", "\u2581 x", "\n", "  ", "<s> a </s>", "b\ud800"]


def test_marked_tokens_cover_the_text(every_tokenizer: list[Tokenizer]) -> None:
    for tokenizer in every_tokenizer:
        for first, second, third in product(MARKED, MARKED, MARKED):
            text = first + second + third
            ids, starts, ends = tokenizer.encode_marked(text)
            assert (ids.dtype, starts.dtype, ends.dtype) == (np.int32, np.int64, np.int64)
            # The bytes of one character share its place, and a token of no character has none.
            places = [place for place, _ in groupby(zip(starts.tolist(), ends.tolist(), strict=True))]
            assert "".join(text[start:end] for start, end in places if end > start) == text
            assert all(start <= end for start, end in places)
            for name, token in (("<s>", tokenizer.bos_id), ("</s>", tokenizer.eos_id)):
                assert ids.tolist().count(token) == text.count(name)
                assert {text[start:end] for i, start, end in zip(ids, starts, ends, strict=True) if i == token} <= {
                    name
                }


def test_text_between_special_tokens_has_its_own_ids(every_tokenizer: list[Tokenizer]) -> None:
    for tokenizer in every_tokenizer:
        assert tokenizer.encode_marked("").ids.tolist() == []
        assert tokenizer.encode_marked("the dog").ids.tolist() == tokenizer.encode("the dog")
        assert tokenizer.encode_marked("</s>").starts.tolist() == [0]
        marked = tokenizer.encode_marked("<s>the dog</s>a")
        assert marked.ids.tolist() == [1, *tokenizer.encode("the dog"), 2, *tokenizer.encode("a")]


def test_ids_as_an_array_are_those_of_the_list(every_tokenizer: list[Tokenizer]) -> None:
    for tokenizer in every_tokenizer:
        for text in ("", "the dog", "é\n\n ", "a\ud800"):
            ids = tokenizer.encode_ids(text)
            assert ids.dtype == np.int32
            assert ids.tolist() == tokenizer.encode(text)


def test_names_of_special_tokens(tokenizer_path: Path, tmp_path: Path) -> None:
    for folder_files in ({}, {"tokenizer_config.json": {"pad_token": "<pad>", "bos_token": {"content": "<s>"}}}):
        for name, content in folder_files.items():
            (tmp_path / name).write_text(json.dumps(content))
        (tmp_path / "tokenizer.model").write_bytes(tokenizer_path.read_bytes())
        for file in (tmp_path / "tokenizer.model", write_tokenizer_json(tmp_path)):
            tokenizer = load_tokenizer(file)
            assert tokenizer.special_names == ("<s>", "</s>")
            expected = {"bos_token": "<s>", "eos_token": "</s>"} | ({"pad_token": "<pad>"} if folder_files else {})
            assert tokenizer.named_tokens == expected


def test_tokens_that_only_the_files_beside_a_model_know(tokenizer_path: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_path.read_bytes())
    assert load_tokenizer(tmp_path).unknown_names == ()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<x>": 999, "</s>": 2}))
    added = {"998": {"content": "<y>"}, "997": {"content": 3}, "996": {}, "995": "<z>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    assert load_tokenizer(tmp_path).unknown_names == ("<y>", "<x>")


def test_random_merges_are_switched_off(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Engine
    from tokenizers import models

    vocabulary = {"a": 0, "b": 1, "ab": 2, "abab": 3}
    engine = Engine(models.BPE(vocabulary, [("a", "b"), ("ab", "ab")], dropout=0.5))
    engine.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert all(tokenizer.encode("abab" * 20) == [3] * 20 for _ in range(5))
    assert tokenizer.encode_marked("abab" * 20).ids.tolist() == [3] * 20
