from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.demo_tokenizer import train_tokenizer
from data_pipeline.encoding import TokenizerError, load_tokenizer
from data_pipeline.index import DataError, Source
from data_pipeline.order import lane_documents, source_seed
from data_pipeline.stream import Row, StreamStateError, TokenStream, merge_states

Write = Callable[[Path, Sequence[str]], Path]
NUM_LANES = 8
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]


def some_texts(count: int, seed: int) -> list[str]:
    """Texts of 0 to 39 words, some of them empty."""
    random = np.random.default_rng(seed)
    return [
        " ".join(random.choice(WORDS, random.integers(0, 40)) if random.random() > 0.1 else []) for _ in range(count)
    ]


TEXTS = {"code": some_texts(23, 1), "prose": some_texts(5, 2)}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, write_jsonl: Write, tokenizer_path: Path) -> DataConfig:
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "code" / "0.jsonl", TEXTS["code"][:9])
    write_jsonl(folder / "code" / "1.jsonl", TEXTS["code"][9:])
    write_jsonl(folder / "prose.jsonl", TEXTS["prose"])
    return DataConfig(
        sources={
            "code": SourceConfig(path=folder / "code", weight=3.0),
            "prose": SourceConfig(path=folder / "prose.jsonl"),
        },
        tokenizer=tokenizer_path,
        seq_len=16,
    )


def stream_of(config: DataConfig, lanes: range = range(NUM_LANES), **changes: Any) -> TokenStream:
    return TokenStream(config, **{"num_lanes": NUM_LANES, "seed": 5, **changes}, lanes=lanes)


def plain(rows: Iterator[Row], count: int) -> list[tuple[int, list[int], list[int], list[int]]]:
    return [
        (row.lane, row.input_ids.tolist(), row.labels.tolist(), row.position_ids.tolist())
        for row in islice(rows, count)
    ]


def split_lanes(ranks: int) -> list[range]:
    size = NUM_LANES // ranks
    return [range(rank * size, (rank + 1) * size) for rank in range(ranks)]


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(state))


def oracle_documents(config: DataConfig, lane: int) -> Iterator[tuple[str, list[int]]]:
    """The documents of one lane with their source, from the definition: no state, no cleverness."""
    encode = load_tokenizer(config.tokenizer).encode

    def documents(name: str) -> Iterator[list[int]]:
        epoch = 0
        while True:
            order = lane_documents(len(TEXTS[name]), source_seed(5, name), epoch, lane, NUM_LANES)
            yield from ([1, *encode(TEXTS[name][number]), 2] for number in order if TEXTS[name][number])
            epoch += 1

    waiting = {name: documents(name) for name in config.sources}
    served = dict.fromkeys(config.sources, 0)
    while True:
        name = min(served, key=lambda name: served[name] / config.sources[name].weight)
        document = next(waiting[name])
        served[name] += len(document)
        yield name, document


def test_rows_against_the_definition(config: DataConfig) -> None:
    steps = 60
    rows = list(islice(stream_of(config), steps * NUM_LANES))
    assert [row.lane for row in rows] == list(range(NUM_LANES)) * steps
    for lane in range(NUM_LANES):
        tokens: list[tuple[int, int]] = []
        for number, (_, document) in enumerate(oracle_documents(config, lane)):
            tokens += [(number, token) for token in document]
            if len(tokens) > steps * config.seq_len:
                break
        expected = [token for _, token in tokens[: steps * config.seq_len]]
        labels = [after if number == next_number else -100 for (number, _), (next_number, after) in pairwise(tokens)]
        of_lane = [row for row in rows if row.lane == lane]
        assert np.concatenate([row.input_ids for row in of_lane]).tolist() == expected
        assert np.concatenate([row.labels for row in of_lane]).tolist() == labels[: steps * config.seq_len]
        assert all(row.input_ids.dtype == row.labels.dtype == row.position_ids.dtype == np.int64 for row in of_lane)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_rows_do_not_depend_on_the_world_size(config: DataConfig, ranks: int) -> None:
    steps = 12
    expected = plain(stream_of(config), steps * NUM_LANES)
    streams = [stream_of(config, lanes) for lanes in split_lanes(ranks)]
    rows = [row for _ in range(steps) for stream in streams for row in plain(stream, len(stream.lanes))]
    assert rows == expected


@settings(max_examples=25, deadline=None)
@given(position=st.integers(0, 200), ranks_before=st.sampled_from([1, 2, 4]), ranks_after=st.sampled_from([1, 2, 8]))
def test_resume_at_any_step_and_world_size(
    config: DataConfig, position: int, ranks_before: int, ranks_after: int
) -> None:
    before = [stream_of(config, lanes) for lanes in split_lanes(ranks_before)]
    for stream in before:
        list(islice(stream, position // 8 * len(stream.lanes)))
    merged = through_json(merge_states([through_json(stream.state_dict()) for stream in before]))
    after = [stream_of(config, lanes) for lanes in split_lanes(ranks_after)]
    for stream in after:
        stream.load_state_dict(merged)
    resumed = [row for _ in range(3) for stream in after for row in plain(stream, len(stream.lanes))]
    uninterrupted = stream_of(config)
    list(islice(uninterrupted, position // 8 * NUM_LANES))
    assert resumed == plain(uninterrupted, 3 * NUM_LANES)


@settings(max_examples=25, deadline=None)
@given(position=st.integers(0, 300))
def test_resume_amid_a_step(config: DataConfig, position: int) -> None:
    stream = stream_of(config)
    list(islice(stream, position))
    state = through_json(stream.state_dict())
    resumed = stream_of(config)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert plain(resumed, 20) == plain(stream, 20)


def test_each_document_once_per_epoch(tmp_path: Path, write_jsonl: Write, tokenizer_path: Path) -> None:
    texts = [f"{number} fox" for number in range(53)]
    source = SourceConfig(path=write_jsonl(tmp_path / "a.jsonl", texts))
    config = DataConfig(sources={"a": source}, tokenizer=tokenizer_path, seq_len=8)
    stream = stream_of(config)
    tokens: dict[int, list[int]] = {lane: [] for lane in range(NUM_LANES)}
    while min(stream.epoch_of(lane)["a"] for lane in range(NUM_LANES)) < 4:
        row = next(stream)
        tokens[row.lane] += row.input_ids.tolist()
    seen: dict[int, list[str]] = {}
    for lane in range(NUM_LANES):
        documents = "".join(chr(token) for token in tokens[lane]).split(chr(1))[1:]
        for count, document in enumerate(documents):
            if document.endswith(chr(2)):
                text = stream.tokenizer.decode([ord(token) for token in document[:-1]])
                seen.setdefault((count * NUM_LANES + lane) // len(texts), []).append(text)
    for epoch in range(3):
        assert sorted(seen[epoch]) == sorted(texts)


def test_proportions_are_exact_to_a_document(config: DataConfig) -> None:
    longest = max(len(load_tokenizer(config.tokenizer).encode(text)) + 2 for texts in TEXTS.values() for text in texts)
    stream = stream_of(config)
    for _ in range(5):
        list(islice(stream, 40 * NUM_LANES))
        for lane in stream.state_dict()["lanes"].values():
            code, prose = lane["tokens"]
            assert abs(code / 3 - prose) <= longest


def test_state_is_small_and_does_not_grow(config: DataConfig) -> None:
    stream = stream_of(config)
    list(islice(stream, 500 * NUM_LANES))
    lanes = stream.state_dict()["lanes"]
    assert len(json.dumps(lanes)) < 120 * NUM_LANES


def test_resume_reads_no_more_later(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    document = Source.document
    monkeypatch.setattr(Source, "document", lambda self, number: reads.append(number) or document(self, number))
    stream = stream_of(config, range(1))
    list(islice(stream, 400))
    read_by_400_rows = len(reads)
    state = stream.state_dict()
    resumed = stream_of(config, range(1))
    reads.clear()
    resumed.load_state_dict(state)
    assert not reads
    next(resumed)
    assert 1 <= len(reads) <= 12 < read_by_400_rows / 4


def test_fewer_documents_than_lanes(tmp_path: Path, write_jsonl: Write, tokenizer_path: Path) -> None:
    source = SourceConfig(path=write_jsonl(tmp_path / "a.jsonl", ["the dog", "the fox", ""]))
    config = DataConfig(sources={"a": source}, tokenizer=tokenizer_path, seq_len=8)
    rows = plain(stream_of(config, range(20), num_lanes=20), 100)
    assert [row[0] for row in rows] == list(range(20)) * 5


def test_without_bos_and_eos(config: DataConfig) -> None:
    bare = DataConfig(sources=config.sources, tokenizer=config.tokenizer, seq_len=16, bos=False, eos=False)
    ids = {token for _, inputs, _, _ in plain(stream_of(bare), 80) for token in inputs}
    assert ids
    assert not {1, 2} & ids


def test_a_source_with_only_empty_documents(tmp_path: Path, write_jsonl: Write, tokenizer_path: Path) -> None:
    source = SourceConfig(path=write_jsonl(tmp_path / "a.jsonl", [""] * 5))
    stream = stream_of(DataConfig(sources={"a": source}, tokenizer=tokenizer_path, seq_len=8))
    with pytest.raises(DataError, match="the source a has no text: all its documents are empty"):
        next(stream)


def test_one_document_with_text_among_many_empty_ones(tmp_path: Path, write_jsonl: Write, tokenizer_path: Path) -> None:
    source = SourceConfig(path=write_jsonl(tmp_path / "a.jsonl", [*[""] * 40, "the dog"]))
    stream = stream_of(DataConfig(sources={"a": source}, tokenizer=tokenizer_path, seq_len=8))
    assert len(plain(stream, 40)) == 40


def changed(config: DataConfig, **changes: Any) -> DataConfig:
    fields = ("sources", "tokenizer", "seq_len", "bos", "eos")
    return DataConfig(**({field: getattr(config, field) for field in fields} | changes))


def test_a_state_of_another_stream_is_refused_with_the_part(
    config: DataConfig, tmp_path: Path, write_jsonl: Write
) -> None:
    state = stream_of(config).state_dict()
    code, prose = config.sources["code"], config.sources["prose"]
    other = write_jsonl(tmp_path / "other.jsonl", [*TEXTS["prose"], "the end"])
    (tmp_path / "other.model").write_bytes(train_tokenizer([["the other text " * 50]], 320))
    streams = {
        "seq_len: saved 16, now 32": stream_of(changed(config, seq_len=32)),
        "bos: saved [1], now []": stream_of(changed(config, bos=False)),
        "eos: saved [2], now []": stream_of(changed(config, eos=False)),
        "seed: saved 5, now 6": stream_of(config, seed=6),
        "num_lanes: saved 8, now 16": stream_of(config, num_lanes=16),
        "tokenizer: saved": stream_of(changed(config, tokenizer=tmp_path / "other.model")),
        "sources: saved ['code', 'prose'], now ['code']": stream_of(changed(config, sources={"code": code})),
        "sources.prose.files: saved": stream_of(
            changed(config, sources={"code": code, "prose": SourceConfig(path=other)})
        ),
        "sources.code.weight: saved 3.0, now 2.0": stream_of(
            changed(config, sources={"code": SourceConfig(path=code.path, weight=2), "prose": prose})
        ),
        "sources.code.text_field: saved 'text', now 'body'": stream_of(
            changed(config, sources={"code": SourceConfig(path=code.path, weight=3, text_field="body"), "prose": prose})
        ),
    }
    for message, stream in streams.items():
        with pytest.raises(StreamStateError) as caught:
            stream.load_state_dict(state)
        assert message in str(caught.value)
        if not message.startswith("sources: "):
            assert str(caught.value).count("saved ") == 2  # "the saved stream", and the one part


def test_incomplete_and_overlapping_states(config: DataConfig) -> None:
    first, second = (stream_of(config, lanes).state_dict() for lanes in split_lanes(2))
    with pytest.raises(StreamStateError, match="lacks 4 lanes of this process, the first is 4; join the states"):
        stream_of(config).load_state_dict(first)
    with pytest.raises(StreamStateError, match="two stream states have the lane 0"):
        merge_states([first, second, first])
    with pytest.raises(StreamStateError, match="no stream state to join"):
        merge_states([])
    with pytest.raises(StreamStateError, match="seed: saved 5, now 9"):
        merge_states([first, stream_of(config, range(4, 8), seed=9).state_dict()])
    with pytest.raises(StreamStateError, match="schema 2, and this version reads 1"):
        stream_of(config).load_state_dict(first | {"schema": 2})


@pytest.mark.parametrize("lanes", [range(0), range(4, 9), range(-1, 2), range(0, 4, 2)])
def test_lanes_that_are_no_range_of_the_batch(config: DataConfig, lanes: range) -> None:
    with pytest.raises(ValueError, match="not a contiguous, non-empty part"):
        stream_of(config, lanes)


def test_bos_that_the_tokenizer_lacks(config: DataConfig, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="set bos = false"):
        stream_of(changed(config, tokenizer=tmp_path))


def test_no_sources(config: DataConfig) -> None:
    with pytest.raises(DataError, match="sources is empty"):
        stream_of(changed(config, sources={}))
