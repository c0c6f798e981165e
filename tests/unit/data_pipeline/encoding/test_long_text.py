from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.encoding import sentencepiece_tokenizer
from data_pipeline.encoding.long_text import Cutter
from data_pipeline.encoding.sentencepiece_model import Piece, PieceKind, SentencePieceModel, parse_model
from data_pipeline.encoding.sentencepiece_tokenizer import SentencePieceTokenizer
from data_pipeline.encoding.tokenizer import TokenizerError
from data_pipeline.stream.token_stream import TokenStream
from tests.unit.data_pipeline.encoding.test_tokenizer import LLAMA

needs_llama = pytest.mark.skipif(not LLAMA.is_file(), reason="the Llama tokenizer is not beside the repository")
TEXTS = (
    st.text(max_size=80)
    | st.text("the dog\n ▁éT", max_size=80)
    | st.lists(
        st.sampled_from(["the ", "quick", "\n", "  ", "dogs", "é", "\t", "▁", "中", "😀", "    return"]), max_size=20
    ).map("".join)
)


def model_of(*texts: str, **changes: object) -> SentencePieceModel:
    settings = {"is_bpe": True, "has_byte_fallback": True, "adds_space": True, "keeps_text": True} | changes
    pieces = [Piece(text, -float(number), PieceKind.NORMAL) for number, text in enumerate(texts)]
    return SentencePieceModel(pieces, **settings)  # type: ignore[arg-type]


@settings(max_examples=50)
@given(text=TEXTS, size=st.integers(1, 12))
def test_parts_have_the_ids_of_the_whole(tokenizer_path: Path, text: str, size: int) -> None:
    check_parts(SentencePieceTokenizer(tokenizer_path), text, size)


_llama: list[SentencePieceTokenizer] = []


@needs_llama
@settings(max_examples=50)
@given(text=TEXTS, size=st.integers(1, 12))
def test_parts_have_the_ids_of_the_whole_with_llamas_model(text: str, size: int) -> None:
    if not _llama:
        _llama.append(SentencePieceTokenizer(LLAMA))
    check_parts(_llama[0], text, size)


def check_parts(tokenizer: SentencePieceTokenizer, text: str, size: int) -> None:
    text = sentencepiece_tokenizer.valid_unicode(text)
    cutter = tokenizer._cutter
    assert cutter.can_cut
    parts = list(cutter.parts(text, size))
    assert "".join(parts) == text
    assert tokenizer.ids_of_parts(parts).tolist() == tokenizer._processor.encode(text)


def test_a_long_text_is_encoded_in_parts(tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentencepiece_tokenizer, "PART", 50)
    tokenizer = SentencePieceTokenizer(tokenizer_path)
    text = "the quick brown fox jumps\nover the lazy dog. " * 30
    seen: list[int] = []
    whole = tokenizer._ids
    monkeypatch.setattr(tokenizer, "_ids", lambda part: (seen.append(len(part)), whole(part))[1])
    monkeypatch.setattr(tokenizer._cutter, "parts", lambda text: Cutter(tokenizer._model).parts(text, 50))
    assert tokenizer.reference_ids(text).tolist() == whole(text).tolist()
    assert max(seen) < 100


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("kind", ["text", "run"])
def test_a_stream_has_the_ids_of_a_huge_document(
    tokenizer_path: Path, tmp_path: Path, kind: str, engine: Literal["auto", "reference"]
) -> None:
    import sentencepiece

    # Two E are side by side in a piece, so a run of them cannot be cut.
    text = "the quick brown fox\njumps over the lazy dog. " * 70_000 if kind == "text" else "E" * 1_000_000
    assert (len(list(SentencePieceTokenizer(tokenizer_path)._cutter.parts(text))) == 1) == (kind == "run")
    path = tmp_path / "huge.jsonl"
    path.write_text(json.dumps({"text": text}) + "\n")
    config = DataConfig(
        sources={"huge": SourceConfig(path=str(path))},
        tokenizer=tokenizer_path,
        tokenizer_engine=engine,
        seq_len=4096,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))
    expected = [processor.bos_id(), *processor.encode(text), processor.eos_id()]
    with TokenStream(config, num_lanes=1, lanes=range(1), seed=0) as stream:
        rows = [next(stream).input_ids for _ in range(-(-len(expected) // config.seq_len))]
    assert np.concatenate(rows)[: len(expected)].tolist() == expected


def test_cuts_are_between_characters_that_no_piece_joins() -> None:
    cutter = Cutter(model_of("▁a", "ab", "c"))
    assert cutter.can_cut
    assert list(cutter.parts("abab", 1)) == ["ab", "ab"]
    assert list(cutter.parts("c ab ab", 1)) == ["c", " ab", " ab"]
    assert list(cutter.parts("c▁ab▁ab", 1)) == ["c", "▁ab", "▁ab"]
    assert list(cutter.parts("ccc", 1)) == ["c", "c", "c"]
    assert list(cutter.parts("", 1)) == [""]
    joined = Cutter(model_of("aa"))
    assert list(joined.parts("a" * 5000, 10)) == ["a" * 5000]
    assert list(joined.parts("a" * 5000 + "b" + "a" * 4000, 10)) == ["a" * 5000, "b" + "a" * 4000]


@pytest.mark.parametrize("change", ["is_bpe", "has_byte_fallback", "keeps_text"])
def test_models_whose_texts_are_not_cut(change: str) -> None:
    assert not Cutter(model_of("a", **{change: False})).can_cut
    assert not Cutter(model_of("a\n")).can_cut
    assert Cutter(model_of("a\n", adds_space=False)).can_cut
    unused = model_of("a")
    unused.pieces.append(Piece("b", 0.0, PieceKind.UNUSED))
    assert not Cutter(unused).can_cut


@needs_llama
def test_the_description_of_llamas_model() -> None:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(LLAMA))
    model = parse_model(LLAMA.read_bytes())
    assert [piece.text for piece in model.pieces] == [processor.id_to_piece(i) for i in range(32000)]
    assert [piece.score for piece in model.pieces] == [processor.get_score(i) for i in range(32000)]
    assert [piece.kind == PieceKind.BYTE for piece in model.pieces] == [processor.is_byte(i) for i in range(32000)]
    assert [i for i, piece in enumerate(model.pieces) if piece.kind == PieceKind.CONTROL] == [1, 2]
    assert model.is_bpe
    assert model.has_byte_fallback
    assert model.adds_space
    assert model.keeps_text


def trained(tmp_path: Path, **options: object) -> Path:
    import sentencepiece

    path = tmp_path / "tokenizer.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the quick brown fox", "jumps over the lazy dog"] * 20),
            model_writer=file,
            **{"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2} | options,
        )
    return path


def test_descriptions_of_other_models(tmp_path: Path) -> None:
    model = parse_model(trained(tmp_path).read_bytes())
    assert (model.is_bpe, model.has_byte_fallback, model.adds_space, model.keeps_text) == (False, False, True, False)
    options = {"model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    symbols = {"user_defined_symbols": ["<tag>"], "add_dummy_prefix": False}
    model = parse_model(trained(tmp_path, **options, **symbols).read_bytes())
    assert (model.is_bpe, model.has_byte_fallback, model.adds_space, model.keeps_text) == (True, False, False, True)
    assert [piece.text for piece in model.pieces if piece.kind == PieceKind.USER_DEFINED] == ["<tag>"]


def test_models_the_fast_engine_is_not_trusted_with(tmp_path: Path) -> None:
    doubt = sentencepiece_tokenizer._doubt
    assert doubt(model_of("a", "ab", "▁▁")) == ""
    ties = model_of("ab", "bc")
    ties.pieces[:] = [piece._replace(score=-1.0) for piece in ties.pieces]
    assert doubt(ties) == "some of its pieces have equal scores"
    runs = model_of("▁▁", "▁▁▁")
    runs.pieces[:] = [piece._replace(score=-1.0) for piece in runs.pieces]
    assert doubt(runs) == ""
    symbols = model_of("a", keeps_text=False)
    symbols.pieces.append(Piece("<tag>", 0.0, PieceKind.USER_DEFINED))
    assert doubt(symbols) == "it has symbols of the user and normalizes its text"
    symbols.pieces.append(Piece("b", 0.0, PieceKind.UNUSED))
    assert doubt(symbols) == "it has unused pieces"


def test_a_model_that_changes_its_text_has_no_places(tmp_path: Path) -> None:
    from data_pipeline.encoding.loading import load_tokenizer
    from data_pipeline.encoding.tokenizer import TokenizerError

    tokenizer = load_tokenizer(trained(tmp_path))
    with pytest.raises(TokenizerError, match=r"tokenizer.model changes the text it encodes, .* tokenizer.json"):
        tokenizer.encode_marked("the  quick ﬁx")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x08\x01", "a field holds a number instead of text"), (b"\x0a", "a field is cut off"), (b"\xff" * 30, "more than 64 bits"),
        (b"\x0a\x05\x15\x00\x00", "a field is cut off"), (b"\x0a\x03\x0a\x01\xff", "can't decode byte"),
    ],
)  # fmt: skip
def test_a_model_that_is_damaged(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_model(content)


def test_damage_that_the_library_passes_over_is_told(tmp_path: Path) -> None:
    tokenizer = SentencePieceTokenizer(trained(tmp_path))
    tokenizer.file.write_bytes(b"\x08\x01")
    with pytest.raises(TokenizerError, match=r"is damaged \(a field holds a number instead of text\); copy it again"):
        tokenizer.encode_marked("some text")
