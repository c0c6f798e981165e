from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.encoding import TokenizerError, load_tokenizer, special_ids

LLAMA = Path(__file__).parents[4] / "shared" / "data" / "llama_tokenizer.model"


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


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
def test_round_trip(tokenizer_path: Path, text: str) -> None:
    tokenizer = load_tokenizer(tokenizer_path)
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
