from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.encoding import fast_engine, reference_tokenizer
from data_pipeline.encoding.fast_engine import TRICKY_TEXTS, FastEngine, UnsupportedError, installed_version
from data_pipeline.encoding.loading import load_tokenizer
from data_pipeline.encoding.sentencepiece_tokenizer import SentencePieceTokenizer
from tests.unit.data_pipeline.encoding.test_tokenizer import LLAMA, write_tokenizer_json

needs_gigatoken = pytest.mark.skipif(installed_version() is None, reason="gigatoken is not installed")


class Letters:
    """Stands in for the engine: the id of a letter is its code, and it fails on question marks."""

    def encode(self, text: str) -> np.ndarray[Any, Any]:
        if "?" in text:
            raise BaseException("panicked")
        return np.array([ord(letter) for letter in text], dtype=np.uint32)


def codes(text: str) -> np.ndarray[Any, Any]:
    return np.array([ord(letter) for letter in text], dtype=np.int32)


def spawned(path: str, texts: list[str]) -> tuple[str, list[list[int]]]:
    tokenizer = load_tokenizer(path)
    return tokenizer.engine, [tokenizer.encode(text) for text in texts]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE with the pattern of Llama 3, special tokens, and one added token that is not special."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    engine = Tokenizer(models.BPE())
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|begin_of_text|>", "<|end_of_text|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(["the dog isn't here; def f(x):\n    return x ** 2\n" * 50], trainer)
    engine.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    path = tmp_path_factory.mktemp("byte_level") / "tokenizer.json"
    engine.save(str(path))
    return path


@pytest.fixture
def every_tokenizer(tokenizer_path: Path, byte_level: Path) -> list[Path]:
    return [tokenizer_path, byte_level, *([LLAMA] if LLAMA.is_file() else [])]


@needs_gigatoken
def test_tricky_texts_have_the_references_ids(every_tokenizer: list[Path]) -> None:
    for path in every_tokenizer:
        fast, reference = loaded(path, "auto"), loaded(path, "reference")
        assert fast.engine == installed_version(), fast.engine_note
        assert fast.engine_note == ""
        assert not reference.engine.startswith("gigatoken")
        for text in TRICKY_TEXTS:
            assert fast.encode(text) == reference.encode(text)


@needs_gigatoken
@settings(max_examples=50)
@given(st.text(max_size=200) | st.text("ab \n'<>/s|ée", max_size=200))
def test_any_text_has_the_references_ids(tokenizer_path: Path, byte_level: Path, text: str) -> None:
    for path in (tokenizer_path, byte_level):
        fast, reference = loaded(path, "auto"), loaded(path, "reference")
        ids = fast.encode_ids(text)
        assert ids.dtype == np.int32
        assert ids.tolist() == reference.encode_ids(text).tolist() == reference.encode(text)


_loaded: dict[tuple[Path, str], Any] = {}


def loaded(path: Path, engine: Any) -> Any:
    if (path, engine) not in _loaded:
        _loaded[path, engine] = load_tokenizer(path, engine)
    return _loaded[path, engine]


@needs_gigatoken
def test_names_of_tokens_go_to_the_reference(tokenizer_path: Path, byte_level: Path) -> None:
    model = load_tokenizer(tokenizer_path)
    assert not {1, 2} & set(model.encode("the <s>dog</s>"))
    bytes_ = load_tokenizer(byte_level)
    reference = load_tokenizer(byte_level, "reference")
    for text in ("a<|end_of_text|>b", "a<tool>b"):
        assert bytes_.encode(text) == reference.encode(text)
    assert bytes_.decode(bytes_.encode("a<|end_of_text|>b")) == "a<|end_of_text|>b"
    assert 1 not in bytes_.encode("a<|end_of_text|>b")


@needs_gigatoken
def test_a_spawned_process_encodes_alike(tokenizer_path: Path, byte_level: Path) -> None:
    texts = [text for text in TRICKY_TEXTS[:40] if "\ud800" not in text]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for path in (tokenizer_path, byte_level):
            here = loaded(path, "auto")
            here.encode("some text before the process starts")
            assert pool.apply(spawned, (str(path), texts)) == (here.engine, [here.encode(text) for text in texts])


def test_other_ids_put_the_reference_in_charge(tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_tokenizer, "installed_version", lambda: "quick 1.0")
    monkeypatch.setattr(SentencePieceTokenizer, "build_fast_engine", lambda self: FastEngine(Letters, []))
    tokenizer = load_tokenizer(tokenizer_path)
    assert tokenizer.engine.startswith("sentencepiece 0.")
    assert tokenizer.engine_note.startswith("quick 1.0 gave other ids than sentencepiece ")
    assert "so it is not used in this run" in tokenizer.engine_note
    assert tokenizer.encode("the dog") == load_tokenizer(tokenizer_path, "reference").encode("the dog")


def test_documents_of_the_run_are_compared_too(tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = SentencePieceTokenizer(tokenizer_path)
    monkeypatch.setattr(tokenizer, "reference_ids", codes)
    monkeypatch.setattr(reference_tokenizer, "installed_version", lambda: "quick 1.0")
    monkeypatch.setattr(tokenizer, "build_fast_engine", lambda: FastEngine(Letters, []))
    monkeypatch.setattr(reference_tokenizer, "TRICKY_TEXTS", ("fine",))
    tokenizer.use_fast_engine()
    assert tokenizer.engine == "quick 1.0"
    assert tokenizer.check_engine(["all", "fine"]) == []
    assert tokenizer.engine == "quick 1.0"
    assert tokenizer.check_engine(["fine", "what?", "x" * 50 + "?"]) == ["what?", "x" * 50 + "?"]
    assert tokenizer.engine.startswith("sentencepiece")
    assert "for 2 texts ('what?')" in tokenizer.engine_note
    assert tokenizer.check_engine(["what?"]) == []


@pytest.mark.parametrize("failure", ["text", "building"])
def test_an_engine_that_fails_in_the_run_is_left_for_the_reference(
    tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: str
) -> None:
    tokenizer = SentencePieceTokenizer(tokenizer_path)
    builds = iter([Letters])
    build = Letters if failure == "text" else lambda: next(builds)()
    monkeypatch.setattr(reference_tokenizer, "installed_version", lambda: "quick 1.0")
    monkeypatch.setattr(reference_tokenizer, "TRICKY_TEXTS", ())
    monkeypatch.setattr(tokenizer, "build_fast_engine", lambda: FastEngine(build, []))
    tokenizer.use_fast_engine()
    assert tokenizer.encode("the") == [ord(letter) for letter in "the"]
    if failure == "building":
        assert tokenizer._fast is not None
        tokenizer._fast._left = -1
    text = "the dog?"
    for _ in range(2):
        assert tokenizer.encode(text) == tokenizer.reference_ids(text).tolist()
    assert tokenizer.engine.startswith("sentencepiece")
    why = "panicked" if failure == "text" else "StopIteration"
    assert tokenizer.engine_note == f"quick 1.0 failed ({why}), so it is used no more in this run"
    (record,) = caplog.records
    assert record.getMessage() == f"{tokenizer.engine_note}; {tokenizer.engine} encodes on, more slowly"


def test_without_the_library_the_reference_encodes(tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_tokenizer, "installed_version", lambda: None)
    tokenizer = load_tokenizer(tokenizer_path)
    assert tokenizer.engine.startswith("sentencepiece")
    assert tokenizer.engine_note == "gigatoken is not installed; it makes tokenizing many times faster"
    assert load_tokenizer(tokenizer_path, "reference").engine_note == ""


@needs_gigatoken
def test_tokenizers_that_leave_room_for_doubt(tmp_path: Path, byte_level: Path) -> None:
    words = load_tokenizer(write_tokenizer_json(tmp_path))
    assert "cannot do this tokenizer: " in words.engine_note
    content = json.loads(byte_level.read_text())
    content["normalizer"] = {"type": "Lowercase"}
    content["added_tokens"][-1]["normalized"] = True
    path = tmp_path / "lower.json"
    path.write_text(json.dumps(content))
    assert load_tokenizer(path).engine_note.endswith("it looks for added tokens in the normalized text")


def test_the_engine_is_built_anew_before_it_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_engine, "REBUILT_AFTER", 10)
    built: list[Letters] = []

    def build() -> Letters:
        built.append(Letters())
        return built[-1]

    engine = FastEngine(build, ["</s>"])
    for _ in range(10):
        ids = engine.encode("abcdef")
        assert ids is not None
        assert ids.tolist() == codes("abcdef").tolist()
    assert len(built) == 5
    assert engine.encode("abc</s>") is None


def test_failures_inside_the_engine_are_doubts() -> None:
    with pytest.raises(UnsupportedError, match="no such kind"):
        FastEngine(lambda: _raise(ValueError("no such kind")), [])
    engine = FastEngine(Letters, [])
    assert not engine.agrees("a?", codes)
    assert engine.agrees("a", codes)
    with pytest.raises(KeyboardInterrupt):
        FastEngine(lambda: _raise(KeyboardInterrupt()), [])


def _raise(error: BaseException) -> None:
    raise error
