"""Sources whose tokens are on disk: the same examples, kept and resumed, and what the policies make of them."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from data_pipeline import files
from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.encoding.examples import BadRecordError, Encoder, Example
from data_pipeline.encoding.loading import load_tokenizer
from data_pipeline.sources.errors import DamagedRecordError, DataError
from data_pipeline.sources.source import Source, open_source
from data_pipeline.tokens import encoded, token_files
from data_pipeline.tokens.encoded import EncodedSource, encode_source


class LetterTokenizer:
    """As much of a tokenizer as is asked for here."""

    vocab_size = 256
    fingerprint = "letters"


class LetterEncoder:
    """An id per letter; the response's are targets."""

    fingerprint: ClassVar[dict[str, Any]] = {"kind": "prompt"}
    calls = 0

    def __init__(self, *_: Any) -> None:
        pass

    def encode(self, record: Any) -> Example:
        type(self).calls += 1
        if "response" not in record:
            raise BadRecordError("has no field 'response'")
        ids = np.frombuffer((record["prompt"] + record["response"]).encode(), np.uint8).astype(np.int32)
        return Example(ids, np.arange(len(ids)) >= len(record["prompt"]))


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> type[LetterEncoder]:
    """Encode by letters, in pieces of 4 documents, and count the calls."""
    monkeypatch.setattr(encoded, "Encoder", LetterEncoder)
    monkeypatch.setattr(encoded, "_PIECE_DOCUMENTS", 4)
    monkeypatch.setattr(LetterEncoder, "calls", 0)
    return LetterEncoder


def pair(prompt: int, response: int) -> dict[str, str]:
    return {"prompt": "abcdefghij"[:prompt], "response": "klmnopqrst"[:response]}


PAIRS = [pair(i % 7, 1 + i % 3) for i in range(10)]


def write_records(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(each if isinstance(each, str) else json.dumps(each) + "\n" for each in records))
    return path


def settings_of(path: Path, **others: Any) -> DataConfig:
    source = SourceConfig(path=str(path), kind="prompt")
    return DataConfig(sources={"pairs": source}, tokenizer=Path("letters.model"), **{"seq_len": 32, **others})


def opened(config: DataConfig) -> Source:
    ((name, source),) = config.sources.items()
    return open_source(name, source, cache_dir=config.cache_dir, cache_bytes=10**9)


def encode(config: DataConfig, **others: Any) -> EncodedSource:
    return encode_source(opened(config), config, LetterTokenizer(), **others)  # type: ignore[arg-type]


def contents(source: EncodedSource) -> list[tuple[str, list[bool] | None]]:
    examples = [source.example(number) for number in range(len(source.lengths))]
    assert [len(ids) for ids, _ in examples] == source.lengths.tolist()
    return [(bytes(ids.tolist()).decode(), None if t is None else t.tolist()) for ids, t in examples]


def expected(records: list[dict[str, str]]) -> list[tuple[str, list[bool]]]:
    return [
        (each["prompt"] + each["response"], [False] * len(each["prompt"]) + [True] * len(each["response"]))
        for each in records
    ]


def test_examples_are_those_of_the_encoder(tmp_path: Path, letters: type[LetterEncoder]) -> None:
    source = encode(settings_of(write_records(tmp_path / "a.jsonl", PAIRS)))
    assert contents(source) == expected(PAIRS)
    assert source.lengths.dtype == np.int32
    assert source.counts == {"bad_records": 0, "too_long": 0, "cut": 0}
    assert sorted(path.name for path in tmp_path.rglob("*.tokens")) == ["0-4.tokens", "4-8.tokens", "8-10.tokens"]


def test_tokens_are_made_once(tmp_path: Path, letters: type[LetterEncoder]) -> None:
    path = write_records(tmp_path / "a.jsonl", PAIRS)
    encode(settings_of(path))
    assert letters.calls == 10
    # Neither the policies, nor the length of rows, nor the name of the file matter.
    path = path.rename(tmp_path / "b.jsonl")
    assert contents(encode(settings_of(path, seq_len=16, too_long="drop", on_bad_record="skip"))) == expected(PAIRS)
    assert letters.calls == 10
    write_records(path, PAIRS[:9])
    assert contents(encode(settings_of(path))) == expected(PAIRS[:9])
    assert letters.calls == 19


def test_another_tokenizer_or_encoding_gives_other_tokens(
    tmp_path: Path, letters: type[LetterEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings_of(write_records(tmp_path / "a.jsonl", PAIRS))
    encode(config)
    monkeypatch.setattr(LetterTokenizer, "fingerprint", "other letters")
    encode(config)
    assert letters.calls == 20
    monkeypatch.setattr(LetterEncoder, "fingerprint", {"kind": "prompt", "template": ("a", "b")})
    encode(config)
    assert letters.calls == 30
    encode(config)
    assert letters.calls == 30


def test_a_stopped_run_loses_the_piece_in_progress(
    tmp_path: Path, letters: type[LetterEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings_of(write_records(tmp_path / "a.jsonl", PAIRS))
    whole_encode = letters.encode

    def stop_amid(self: LetterEncoder, record: Any) -> Example:
        if letters.calls == 9:
            raise KeyboardInterrupt
        return whole_encode(self, record)

    monkeypatch.setattr(letters, "encode", stop_amid)
    with pytest.raises(KeyboardInterrupt):
        encode(config)
    monkeypatch.setattr(letters, "encode", whole_encode)
    kept = [path.name for path in tmp_path.rglob("*.tokens")]
    assert len(kept) == 2
    assert contents(encode(config)) == expected(PAIRS)
    # Of the last piece, one to three documents were lost, by which piece it was.
    assert 10 < letters.calls <= 13


def test_progress_counts_what_is_to_be_encoded(tmp_path: Path, letters: type[LetterEncoder]) -> None:
    config = settings_of(write_records(tmp_path / "a.jsonl", PAIRS))
    told: list[tuple[str, int, int]] = []
    encode(config, progress=lambda *what: told.append(what))
    assert {(what, total) for what, _, total in told} == {("encoding pairs", 10)}
    done = [done for _, done, _ in told]
    assert done == sorted(done)
    assert done[-1] == 10
    told.clear()
    encode(config, progress=lambda *what: told.append(what))
    assert told == []


BAD_RECORDS = [pair(2, 2), {"prompt": "x"}, "{broken\n", pair(3, 1), {"prompt": "y"}, {"prompt": "z"}]


def test_bad_records_fail_with_their_positions(tmp_path: Path, letters: type[LetterEncoder]) -> None:
    path = write_records(tmp_path / "a.jsonl", BAD_RECORDS)
    with pytest.raises(DataError) as caught:
        encode(settings_of(path))
    message = str(caught.value)
    assert message.startswith(f"the source pairs: 4 of 6 records cannot be used: {path}, line 2 (byte ")
    assert "line 2" in message
    assert "has no field 'response'" in message
    assert "line 3" in message
    assert "JSON" in message
    assert "line 5" in message
    assert "line 6" not in message
    assert message.endswith('; and 1 more. Correct them, or leave them out with data.on_bad_record = "skip"')


def test_bad_records_are_skipped_and_counted(tmp_path: Path, letters: type[LetterEncoder]) -> None:
    path = write_records(tmp_path / "a.jsonl", BAD_RECORDS)
    source = encode(settings_of(path, on_bad_record="skip"))
    assert source.lengths.tolist() == [4, 0, 0, 4, 0, 0]
    assert source.counts["bad_records"] == 4
    assert contents(source)[3] == expected([pair(3, 1)])[0]
    assert len(source.example(2).ids) == 0


LONG = [pair(2, 2), pair(6, 8), pair(9, 3), pair(1, 10), pair(7, 1), pair(7, 2)]


def test_long_examples_fail_with_their_number(tmp_path: Path, letters: type[LetterEncoder]) -> None:
    path = write_records(tmp_path / "a.jsonl", LONG)
    with pytest.raises(DataError) as caught:
        encode(settings_of(path, seq_len=8))
    message = str(caught.value)
    assert "4 of 6 examples have more than 8 tokens, the longest 14" in message
    assert f"({path}, line 2 (byte " in message
    assert (
        'raise data.seq_len, or leave them out with data.too_long = "drop", or cut them at their end with "cut"'
        in message
    )


def test_long_examples_are_dropped_or_cut(tmp_path: Path, letters: type[LetterEncoder]) -> None:
    path = write_records(tmp_path / "a.jsonl", LONG)
    dropped = encode(settings_of(path, seq_len=8, too_long="drop"))
    assert dropped.lengths.tolist() == [4, 0, 0, 0, 8, 0]
    assert dropped.counts == {"bad_records": 0, "too_long": 4, "cut": 0}
    cut = encode(settings_of(path, seq_len=8, too_long="cut"))
    # The third keeps no target, so nothing could be learned from it.
    assert cut.lengths.tolist() == [4, 8, 0, 8, 8, 8]
    assert cut.counts == {"bad_records": 0, "too_long": 1, "cut": 3}
    assert contents(cut)[1] == ("abcdefkl", [False] * 6 + [True] * 2)
    assert contents(cut)[5] == ("abcdefgk", [False] * 7 + [True])


def test_opening_long_examples_reads_none_of_them(
    tmp_path: Path, letters: type[LetterEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_records(tmp_path / "a.jsonl", LONG)
    monkeypatch.setattr(token_files.TokenFile, "example", lambda *_: pytest.fail("a document was read"))
    for _ in range(2):
        assert encode(settings_of(path, seq_len=8, too_long="cut")).lengths.tolist() == [4, 8, 0, 8, 8, 8]


def test_the_first_token_is_no_target_to_keep(tmp_path: Path, letters: type[LetterEncoder]) -> None:
    path = write_records(tmp_path / "a.jsonl", [pair(0, 10)])
    assert encode(settings_of(path, seq_len=8, too_long="cut")).lengths.tolist() == [8]


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("part", ["block", "entry", "end", "description", "missing"])
def test_damaged_tokens_are_made_again(tmp_path: Path, letters: type[LetterEncoder], part: str) -> None:
    config = settings_of(write_records(tmp_path / "a.jsonl", PAIRS))
    encode(config)
    (path,) = tmp_path.rglob("4-8.tokens")
    if part == "missing":
        path.unlink()
    elif part == "end":
        path.write_bytes(path.read_bytes()[:-3])
    elif part == "description":
        path.with_suffix(".json").write_text("{}")
    else:
        damage(path, 0 if part == "block" else -16)
    assert contents(encode(config)) == expected(PAIRS)
    assert letters.calls == 14
    assert contents(encode(config)) == expected(PAIRS)
    assert letters.calls == 14


def test_tokens_damaged_while_they_are_read_are_made_again(
    tmp_path: Path, letters: type[LetterEncoder], caplog: pytest.LogCaptureFixture
) -> None:
    source = encode(settings_of(write_records(tmp_path / "a.jsonl", PAIRS)))
    contents(source)
    (path,) = tmp_path.rglob("4-8.tokens")
    damage(path, 1)
    assert contents(source) == expected(PAIRS)
    assert "4-8.tokens: the tokens of document 0 have another checksum; it is made again" in caplog.text
    path.unlink()
    source = encode(settings_of(tmp_path / "a.jsonl"))
    assert contents(source) == expected(PAIRS)


def test_where_tokens_are_kept(tmp_path: Path, letters: type[LetterEncoder], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_records(tmp_path / "a.jsonl", PAIRS)
    encode(settings_of(path))
    assert len(list((tmp_path / ".index" / "tokens").rglob("*.tokens"))) == 3
    # Those beside the data serve a run with a cache of its own.
    encode(settings_of(path, cache_dir=tmp_path / "cache"))
    assert letters.calls == 10
    write_records(path, PAIRS[:3])
    encode(settings_of(path, cache_dir=tmp_path / "cache"))
    assert len(list((tmp_path / "cache" / "tokens").rglob("*.tokens"))) == 1
    # A place that cannot be written: the next one is taken.
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    beside = tmp_path / ".index" / "tokens"
    monkeypatch.setattr(
        encoded, "can_write", lambda folder: f"{folder}: no" if beside in folder.parents else writable(folder)
    )
    write_records(path, PAIRS[:4])
    encode(settings_of(path))
    assert len(list((tmp_path / "home" / ".cache" / "palimpsest" / "tokens").rglob("*.tokens"))) == 1


def writable(folder: Path) -> str | None:
    folder.mkdir(parents=True, exist_ok=True)
    return None


def test_no_place_for_tokens(tmp_path: Path, letters: type[LetterEncoder], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_records(tmp_path / "a.jsonl", PAIRS)
    monkeypatch.setattr(encoded, "can_write", lambda folder: f"{folder}: Read-only file system")
    with pytest.raises(DataError, match=r"tokens can be kept nowhere \(.*: Read-only file system.*set data.cache_dir"):
        encode(settings_of(path))


def test_a_full_disk(tmp_path: Path, letters: type[LetterEncoder], monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings_of(write_records(tmp_path / "a.jsonl", PAIRS))
    opened(config)

    def fill(path: Path, write: Callable[..., object]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(token_files, "write_atomically", fill)
    with pytest.raises(
        DataError, match=r"source pairs cannot be written to .*: No space left on device; make room there"
    ):
        encode(config)
    monkeypatch.setattr(token_files, "write_atomically", files.write_atomically)
    assert contents(encode(config)) == expected(PAIRS)


def test_a_file_that_is_gone_again(
    tmp_path: Path, letters: type[LetterEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoded, "_make_piece", lambda *_: None)
    with pytest.raises(DataError, match="cannot be read although it was just written; look after the storage"):
        encode(settings_of(write_records(tmp_path / "a.jsonl", PAIRS)))


def test_documents_of_a_piece_are_read_by_blocks() -> None:
    class Blocks:
        block_starts = np.array([0, 3, 4, 9, 12])
        asked: ClassVar[list[tuple[int, int]]] = []

        def records(self, start: int, stop: int) -> Iterator[Any]:
            self.asked.append((start, stop))
            return iter(range(start, stop))

    class Same:
        def encode(self, record: Any) -> Any:
            return record

    source: Any = Blocks()
    for start, stop, spans in [(0, 12, [(0, 3), (3, 4), (4, 9), (9, 12)]), (2, 10, [(2, 3), (3, 4), (4, 9), (9, 10)])]:
        source.asked.clear()
        assert list(encoded._encode(source, Same(), start, stop)) == list(range(start, stop))  # type: ignore[arg-type]
        assert source.asked == spans


@pytest.fixture
def texts(tmp_path: Path, tokenizer_path: Path) -> DataConfig:
    """Two shards of text, with an empty document and a damaged record."""
    folder = tmp_path / "text"
    folder.mkdir()
    words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
    rng = np.random.default_rng(0)
    for name in "ab":
        records: list[Any] = [{"text": " ".join(rng.choice(words, size))} for size in rng.integers(0, 30, 40)]
        write_records(folder / f"{name}.jsonl", [*records, "{broken\n", {"text": ""}])
    return DataConfig(
        sources={"text": SourceConfig(path=str(folder))},
        tokenizer=tokenizer_path,
        tokenizer_engine="reference",
        seq_len=16,
        on_bad_record="skip",
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_text_equals_the_encoder_in_any_number_of_processes(texts: DataConfig, workers: int) -> None:
    source, tokenizer = opened(texts), load_tokenizer(texts.tokenizer, "reference")
    found = encode_source(source, texts, tokenizer, workers=workers)
    encoder = Encoder(source.config, texts, tokenizer)
    bad = 0
    for number in range(source.num_documents):
        (record,) = source.records(number, number + 1)
        example = found.example(number)
        assert example.is_target is None
        if isinstance(record, DamagedRecordError):
            bad += 1
            assert found.lengths[number] == 0
        else:
            assert example.ids.tolist() == encoder.encode(record).ids.tolist()
    assert bad == found.counts["bad_records"] == 2
    # Text is cut into rows, so no document is too long.
    assert found.lengths.max() > texts.seq_len


def test_the_same_rows_with_and_without_kept_tokens(texts: DataConfig) -> None:
    stream = pytest.importorskip("data_pipeline.stream.token_stream")
    rows = []
    for token_cache in (False, True):
        config = replace(texts, token_cache=token_cache)
        made = stream.TokenStream(config, num_lanes=2, lanes=range(2), seed=5)
        rows.append([[part.tolist() for part in next(made)[1:4]] for _ in range(60)])
        made.close()
    assert rows[0] == rows[1]
