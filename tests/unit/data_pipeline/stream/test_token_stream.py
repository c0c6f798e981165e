from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.demo.tokenizer import train_tokenizer
from data_pipeline.encoding.loading import load_tokenizer
from data_pipeline.encoding.tokenizer import TokenizerError
from data_pipeline.order import Permutation, source_seed
from data_pipeline.packing import best_fit
from data_pipeline.sources.errors import DataError
from data_pipeline.sources.shard import Shard
from data_pipeline.sources.source import Source
from data_pipeline.stream.opening import open_data
from data_pipeline.stream.state import lanes_of, state_of
from data_pipeline.stream.token_stream import PADDING, Row, StreamStateError, TokenStream, merge_states

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
            "code": SourceConfig(path=str(folder / "code"), weight=3.0),
            "prose": SourceConfig(path=str(folder / "prose.jsonl")),
        },
        tokenizer=tokenizer_path,
        seq_len=16,
    )


def stream_of(config: DataConfig, lanes: range = range(NUM_LANES), **changes: Any) -> TokenStream:
    return TokenStream(config, **{"num_lanes": NUM_LANES, "seed": 5, **changes}, lanes=lanes)


def one_source(path: Path, tokenizer: Path, **changes: Any) -> DataConfig:
    return DataConfig(sources={"a": SourceConfig(path=str(path))}, tokenizer=tokenizer, seq_len=8, **changes)


def plain(rows: Iterator[Row], count: int) -> list[tuple[Any, ...]]:
    return [
        (row.lane, row.input_ids.tolist(), row.labels.tolist(), row.position_ids.tolist(), row.documents)
        for row in islice(rows, count)
    ]


def oracle_documents(config: DataConfig, lane: int) -> Iterator[tuple[str, int, list[int]]]:
    """The documents of one lane with their source, from the definition: no state, no cleverness."""
    encode = load_tokenizer(config.tokenizer).encode

    def documents(name: str) -> Iterator[tuple[int, list[int]]]:
        # Blocks are single documents here: the lane takes every NUM_LANES-th of all epochs, one after the other.
        for number in islice(numbers(name), lane, None, NUM_LANES):
            if TEXTS[name][number]:
                yield number, [1, *encode(TEXTS[name][number]), 2]

    def numbers(name: str) -> Iterator[int]:
        epoch = 0
        while True:
            yield from Permutation(len(TEXTS[name]), (source_seed(5, name), epoch))
            epoch += 1

    waiting = {name: documents(name) for name in config.sources}
    served = dict.fromkeys(config.sources, 0)
    while True:
        name = min(served, key=lambda name: served[name] / Fraction(config.sources[name].weight))
        number, document = next(waiting[name])
        served[name] += len(document)
        yield name, number, document


def test_rows_against_the_definition(config: DataConfig) -> None:
    steps = 60
    rows = list(islice(stream_of(config), steps * NUM_LANES))
    assert [row.lane for row in rows] == list(range(NUM_LANES)) * steps
    for lane in range(NUM_LANES):
        tokens: list[tuple[int, int]] = []
        names: list[tuple[str, int]] = []
        for which, (name, number, document) in enumerate(oracle_documents(config, lane)):
            names.append((name, number))
            tokens += [(which, token) for token in document]
            if len(tokens) > steps * config.seq_len:
                break
        expected = [token for _, token in tokens[: steps * config.seq_len]]
        labels = [after if which == following else -100 for (which, _), (following, after) in pairwise(tokens)]
        of_lane = [row for row in rows if row.lane == lane]
        assert np.concatenate([row.input_ids for row in of_lane]).tolist() == expected
        assert np.concatenate([row.labels for row in of_lane]).tolist() == labels[: steps * config.seq_len]
        assert all(row.input_ids.dtype == row.labels.dtype == row.position_ids.dtype == np.int64 for row in of_lane)
        begun = [document for row in of_lane for document in row.documents if document.offset == 0]
        assert [(list(config.sources)[document.source], document.number) for document in begun] == names[: len(begun)]
        for row in of_lane:
            assert [document.start for document in row.documents] == np.flatnonzero(row.position_ids == 0).tolist()


def test_documents_say_where_their_parts_are(config: DataConfig) -> None:
    stream = stream_of(config)
    waiting: dict[int, int] = {}
    for row in islice(stream, 200):
        starts = [document.start for document in row.documents]
        for document, start, stop in zip(row.documents, starts, [*starts[1:], 16], strict=True):
            text = stream.sources[document.source].records(document.number, document.number + 1)[0]["text"]
            ids = [1, *stream.tokenizer.encode(text), 2]
            assert row.input_ids[start:stop].tolist() == ids[document.offset :][: stop - start]
            assert document.offset == waiting.pop(row.lane, 0)
            if stop == 16 and document.offset + stop - start < len(ids):
                waiting[row.lane] = document.offset + stop - start


def test_examples_are_whole_and_padding_is_a_document_of_its_own(tmp_path: Path, tokenizer_path: Path) -> None:
    random = np.random.default_rng(0)
    pairs = [(" ".join(random.choice(WORDS, 2)), " ".join(random.choice(WORDS, 3))) for _ in range(40)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": a, "response": b}) + "\n" for a, b in pairs))
    source = SourceConfig(path=str(path), kind="prompt")
    config = DataConfig(sources={"a": source}, tokenizer=tokenizer_path, seq_len=100)
    data = open_data(config, workers=0)
    padded = 0
    for row in islice(stream_of(config, data=data), 40):
        starts = [document.start for document in row.documents]
        assert starts == np.flatnonzero(row.position_ids == 0).tolist()
        for document, start, stop in zip(row.documents, starts, [*starts[1:], 100], strict=True):
            ids, labels = row.input_ids[start:stop], row.labels[start:stop]
            assert row.position_ids[start:stop].tolist() == list(range(stop - start))
            if document.source == PADDING:
                padded += 1
                assert set(ids.tolist()) == {2}
                assert set(labels.tolist()) == {-100}
                continue
            example = data.encoders[0].encode(dict(zip(("prompt", "response"), pairs[document.number], strict=True)))
            assert ids.tolist() == example.ids.tolist()
            assert example.is_target is not None
            learned = [int(i) if t else -100 for i, t in zip(example.ids[1:], example.is_target[1:], strict=True)]
            assert labels.tolist() == [*learned, -100]
            assert 0 < sum(label != -100 for label in learned) < len(learned)
    assert padded


@pytest.fixture
def large_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of many documents, however many lanes there are."""
    monkeypatch.setattr("data_pipeline.sources.source.BLOCKS", 3)
    monkeypatch.setattr("data_pipeline.order.BLOCKS_PER_LANE", 0)


@pytest.mark.usefixtures("large_blocks")
def test_less_memory_gives_the_same_rows(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = plain(stream_of(config), 300)
    reads = counted_reads(monkeypatch)
    assert plain(stream_of(config), 300) == expected
    enough = len(reads)
    monkeypatch.setattr("data_pipeline.stream.token_stream._MAX_KEPT_BYTES", 2 * NUM_LANES * 2000)
    reads.clear()
    assert plain(stream_of(config), 300) == expected
    some = len(reads)
    monkeypatch.setattr("data_pipeline.stream.token_stream._MAX_KEPT_BYTES", 0)
    reads.clear()
    assert plain(stream_of(config), 300) == expected
    assert enough < some < len(reads), "the less is kept, the more often it is read"


@pytest.mark.usefixtures("large_blocks")
def test_a_block_is_one_read(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_data(config, workers=0)
    reads = counted_reads(monkeypatch)
    stream = stream_of(config, range(1), data=data)
    seen = {(d.source, d.epoch, d.number) for row in islice(stream, 400) for d in row.documents}
    assert len(reads) < len(seen) / 2
    blocks = {pair for source in data.sources for pair in pairwise(source.block_starts.tolist())}
    assert set(reads) <= blocks


def counted_reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What is read from now on, as (start, stop)."""
    reads: list[tuple[int, int]] = []
    records = Source.records
    monkeypatch.setattr(
        Source, "records", lambda self, a, b, kept=None: reads.append((a, b)) or records(self, a, b, kept)
    )
    return reads


@pytest.fixture
def one_row_group(tmp_path: Path, tokenizer_path: Path) -> DataConfig:
    """5000 documents of equal length, all in one extent."""
    pq.write_table(pa.table({"text": [f"document {number:04}" for number in range(5000)]}), tmp_path / "one.parquet")
    return DataConfig(
        sources={"a": SourceConfig(path=str(tmp_path / "one.parquet"))}, tokenizer=tokenizer_path, seq_len=16
    )


def test_the_first_documents_of_one_extent_are_different(one_row_group: DataConfig) -> None:
    lanes = 64
    stream = TokenStream(one_row_group, num_lanes=lanes, lanes=range(lanes), seed=5)
    starts: list[tuple[int, int]] = []
    while len(starts) < 5000:
        starts += [(d.number, d.epoch) for d in next(stream).documents if d.offset == 0]
    assert len({number for number, _ in starts[:5000]}) > 0.95 * 5000
    assert {epoch for _, epoch in starts} <= {0, 1}


def test_lanes_share_what_is_decoded(one_row_group: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = Shard.decode
    data = open_data(one_row_group, workers=0)
    monkeypatch.setattr(Shard, "decode", lambda self, number, raw: decoded.append(number) or decode(self, number, raw))
    stream = stream_of(one_row_group, data=data)
    expected = plain(stream, 400)
    assert decoded == [0]
    stream.close()
    # As little memory as there may be: what a lane keeps of a block is decoded once for all of it.
    monkeypatch.setattr("data_pipeline.stream.token_stream._MAX_KEPT_BYTES", 0)
    assert plain(stream_of(one_row_group, data=data), 400) == expected
    assert decoded == [0, 0], "the last extent is kept, and serves one document after the other"


def test_state_is_small_and_does_not_grow(config: DataConfig) -> None:
    stream = stream_of(config)
    sizes = []
    for _ in range(2):
        list(islice(stream, 500 * NUM_LANES))
        state = stream.state_dict()
        sizes.append(len(json.dumps(state)) - len(json.dumps(state["fingerprint"])))
    assert sizes[0] < 700
    assert abs(sizes[1] - sizes[0]) < 60


def test_resume_reads_no_more_later(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_data(config, workers=0)
    reads = counted_reads(monkeypatch)
    stream = stream_of(config, range(1), data=data)
    list(islice(stream, 400))
    read_by_400_rows = len(reads)
    state = stream.state_dict()
    resumed = stream_of(config, range(1), data=data)
    reads.clear()
    resumed.load_state_dict(state)
    assert not reads
    next(resumed)
    assert 1 <= len(reads) <= 12 < read_by_400_rows / 4


def test_padding_does_not_count_as_a_part_of_the_mixture(
    tmp_path: Path, write_jsonl: Write, tokenizer_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": "the quick", "response": "fox"}) + "\n" for _ in range(50)))
    pairs, text = SourceConfig(path=str(path), kind="prompt"), write_jsonl(tmp_path / "b.jsonl", ["the lazy dog"] * 50)
    config = DataConfig(sources={"a": pairs, "b": SourceConfig(path=str(text))}, tokenizer=tokenizer_path)
    encoded = open_data(config, workers=0).encoded[0]
    assert encoded is not None
    length = int(encoded.lengths[0])
    # One example in each row, and nearly as much padding.
    config = replace(config, seq_len=2 * length - 1)
    rows = list(islice(stream_of(config, range(1), num_lanes=1), 300))
    examples = sum(row.documents[0].source == 0 for row in rows)
    assert abs(examples * length - (len(rows) - examples) * config.seq_len) <= config.seq_len


def test_resume_packs_no_more_later(tmp_path: Path, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best_fit, "WINDOW_ROWS", 32)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"the {n}", "response": "a dog"}) + "\n" for n in range(2000)))
    source = SourceConfig(path=str(path), kind="prompt")
    config = DataConfig(sources={"a": source}, tokenizer=tokenizer_path, seq_len=64)
    data = open_data(config, workers=0)
    windows: list[int] = []
    make = best_fit.PackedOrder._make_window
    monkeypatch.setattr(best_fit.PackedOrder, "_make_window", lambda self: windows.append(1) or make(self))
    stream = stream_of(config, data=data)
    list(islice(stream, 3000))
    assert len(windows) > 50
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = stream_of(config, data=data)
    windows.clear()
    resumed.load_state_dict(state)
    assert not windows
    rows = plain(resumed, 1)
    assert len(windows) <= 2
    assert rows == plain(stream, 1)


def many_examples(folder: Path, tokenizer: Path) -> DataConfig:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"the {n}", "response": "a dog"}) + "\n" for n in range(2000)))
    source = SourceConfig(path=str(path), kind="prompt")
    return DataConfig(sources={"pairs": source}, tokenizer=tokenizer, seq_len=64)


@pytest.mark.parametrize("text_weight", [0.0, 20.0])
def test_few_windows_are_held_however_many_lanes_others_have(
    tmp_path: Path, write_jsonl: Write, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch, text_weight: float
) -> None:
    monkeypatch.setattr(best_fit, "WINDOW_ROWS", 40)
    config = many_examples(tmp_path, tokenizer_path)
    if text_weight:
        path = write_jsonl(tmp_path / "text.jsonl", ["the lazy dog"] * 50)
        config = replace(config, sources=config.sources | {"text": SourceConfig(path=str(path), weight=text_weight)})
    made: list[int] = []
    make = best_fit.PackedOrder._make_window
    monkeypatch.setattr(best_fit.PackedOrder, "_make_window", lambda self: made.append(1) or make(self))
    stream = stream_of(config, range(3, 6), num_lanes=256)
    held = []
    for _ in islice(stream, 900 if text_weight else 90):
        assert stream._examples is not None
        held.append(len(stream._examples.order._windows))
    assert len(made) > 50
    # Lanes of the same step, of which one has had its row and the other has not: 256 rows.
    assert max(held) <= 256 / 32 + 2


@pytest.mark.parametrize(
    ("anchor", "reason"),
    [
        (None, "lacks a part"),
        ({}, "lacks a part"),
        ({"places": "x"}, "has other values than integers"),
        ({"tokens": [None]}, "has other values than integers"),
        ({"first_row": 10_000}, "starts at row 10000, behind row 400, which is next"),
        ({"places": [1, 1], "tokens": [1, 1], "carried": [[], []]}, "is not of 1 sources of examples"),
        ({"carried": [[10**6]]}, "carries examples that there are not"),
    ],
)
def test_a_state_with_a_damaged_anchor_is_refused_whole(
    tmp_path: Path, tokenizer_path: Path, anchor: dict[str, Any] | None, reason: str
) -> None:
    config = many_examples(tmp_path, tokenizer_path)
    data = open_data(config, workers=0)
    source = stream_of(config, data=data)
    list(islice(source, 400))
    state = json.loads(json.dumps(source.state_dict()))
    stream, untouched = stream_of(config, data=data), stream_of(config, data=data)
    assert plain(stream, 20) == plain(untouched, 20)
    with pytest.raises(
        StreamStateError, match=rf"is damaged \(its anchor {reason}.*\); resume from an earlier checkpoint"
    ):
        stream.load_state_dict(state | {"anchor": state["anchor"] | anchor if anchor else anchor})
    del state["anchor"]
    with pytest.raises(StreamStateError, match="its anchor lacks a part"):
        stream.load_state_dict(state)
    assert stream.state_dict() == untouched.state_dict()
    assert plain(stream, 100) == plain(untouched, 100)


def test_fewer_documents_than_lanes(tmp_path: Path, write_jsonl: Write, tokenizer_path: Path) -> None:
    config = one_source(write_jsonl(tmp_path / "a.jsonl", ["the dog", "the fox", ""]), tokenizer_path)
    rows = plain(stream_of(config, range(20), num_lanes=20), 100)
    assert [row[0] for row in rows] == list(range(20)) * 5


def test_without_bos_and_eos(config: DataConfig) -> None:
    bare = replace(config, bos=False, eos=False)
    ids = {token for row in islice(stream_of(bare), 80) for token in row.input_ids.tolist()}
    assert ids
    assert not {1, 2} & ids


def test_going_to_an_epoch(config: DataConfig) -> None:
    for epoch in (0, 1, 4):
        stream = stream_of(config)
        stream.go_to_epoch(epoch)
        first: dict[tuple[int, int], int] = {}
        for row in islice(stream, 40 * NUM_LANES):
            for document in row.documents:
                assert document.epoch >= epoch
                first.setdefault((row.lane, document.source), document.epoch)
        # More lanes than documents of prose: some lanes have none in this epoch.
        assert [first[lane, 0] for lane in range(NUM_LANES)] == [epoch] * NUM_LANES
        assert sum(first[lane, 1] == epoch for lane in range(NUM_LANES)) >= 3


def test_going_to_an_epoch_of_examples(tmp_path: Path, tokenizer_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": "the fox", "response": "a dog"}) + "\n" for _ in range(3000)))
    source = SourceConfig(path=str(path), kind="prompt")
    config = DataConfig(sources={"a": source}, tokenizer=tokenizer_path, seq_len=64)
    stream = stream_of(config)
    stream.go_to_epoch(1)
    rows = list(islice(stream, NUM_LANES))
    assert max(document.epoch for row in rows for document in row.documents) == 1
    begun = stream.state_dict()
    resumed = stream_of(config)
    resumed.load_state_dict(begun)
    assert plain(resumed, 20) == plain(stream, 20)
    # And back, where rows have been let go.
    stream.go_to_epoch(0)
    assert plain(stream, 20) == plain(stream_of(config), 20)


def test_a_source_with_only_empty_documents(tmp_path: Path, write_jsonl: Write, tokenizer_path: Path) -> None:
    stream = stream_of(one_source(write_jsonl(tmp_path / "a.jsonl", [""] * 5), tokenizer_path))
    with pytest.raises(DataError, match="the source a has no text: all its 5 documents are empty or bad records"):
        next(stream)


def test_a_source_with_only_bad_records(tmp_path: Path, write_jsonl: Write, tokenizer_path: Path) -> None:
    config = one_source(write_jsonl(tmp_path / "a.jsonl", ["the dog"] * 5), tokenizer_path, on_bad_record="skip")
    config = replace(config, sources={"a": replace(config.sources["a"], text_field="body")})
    with pytest.raises(DataError, match=r"has no text: all its 5 documents .*look at its text_field"):
        next(stream_of(config))


def test_one_document_with_text_among_many_empty_ones(tmp_path: Path, write_jsonl: Write, tokenizer_path: Path) -> None:
    config = one_source(write_jsonl(tmp_path / "a.jsonl", [*[""] * 40, "the dog"]), tokenizer_path)
    assert len(plain(stream_of(config), 40)) == 40


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"body": "x"}', "has no field 'text'; set text_field to one of its fields: body"),
        ('{"text": 3}', "has int in the field 'text', where text is needed"),
        ('{"text": "cut', ""),
    ],
)
def test_a_bad_record_is_named_and_leaves_the_stream_as_it_was(
    tmp_path: Path, tokenizer_path: Path, line: str, reason: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "the quick fox"}) + "\n" for _ in range(30)) + line + "\n")
    config = one_source(path, tokenizer_path)
    stream = stream_of(config, range(1), num_lanes=1)
    with pytest.raises(DataError, match="the source a: ") as caught:
        list(islice(stream, 1000))
    assert f"{path}, line 31 (byte 780)" in str(caught.value)
    assert reason in str(caught.value)
    assert 'data.on_bad_record = "skip"' in str(caught.value)
    before = stream.state_dict()
    with pytest.raises(DataError, match="line 31 "):
        next(stream)
    assert stream.state_dict() == before
    # As the message says; nothing before the bad record came otherwise, and it goes on behind it.
    skipping = stream_of(replace(config, on_bad_record="skip"), range(1), num_lanes=1)
    skipping.load_state_dict(before)
    assert len(plain(skipping, 50)) == 50
    assert skipping.counts()["a"]["bad_records"] >= 1


def test_a_closed_stream_can_be_closed_again(config: DataConfig) -> None:
    with stream_of(config) as stream:
        next(stream)
        state = stream.state_dict()
    stream.close()
    assert stream.state_dict() == state


def test_a_state_of_another_stream_is_refused_with_the_part(
    config: DataConfig, tmp_path: Path, write_jsonl: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = stream_of(config).state_dict()
    code, prose = config.sources["code"], config.sources["prose"]
    other = write_jsonl(tmp_path / "other.jsonl", [*TEXTS["prose"], "the end"])
    (tmp_path / "other.model").write_bytes(train_tokenizer([["the other text " * 50]], 320))
    streams = {
        "seq_len: saved 16, now 32": stream_of(replace(config, seq_len=32)),
        "bos: saved [1], now []": stream_of(replace(config, bos=False)),
        "eos: saved [2], now []": stream_of(replace(config, eos=False)),
        "seed: saved 5, now 6": stream_of(config, seed=6),
        "num_lanes: saved 8, now 16": stream_of(config, num_lanes=16),
        "tokenizer: saved": stream_of(replace(config, tokenizer=tmp_path / "other.model")),
        "sources: saved ['code', 'prose'], now ['code']": stream_of(replace(config, sources={"code": code})),
        "sources.prose.files: saved": stream_of(
            replace(config, sources={"code": code, "prose": SourceConfig(path=str(other))})
        ),
        "sources.code.weight: saved 3.0, now 2.0": stream_of(
            replace(config, sources={"code": replace(code, weight=2), "prose": prose})
        ),
        "sources.code.text_field: saved 'text', now 'body'": stream_of(
            replace(config, sources={"code": replace(code, text_field="body"), "prose": prose})
        ),
    }
    monkeypatch.setattr("data_pipeline.sources.source.BLOCKS", 4)
    monkeypatch.setattr("data_pipeline.order.BLOCKS_PER_LANE", 0)
    streams["sources.code.blocks: saved"] = stream_of(config)
    for message, stream in streams.items():
        with pytest.raises(StreamStateError) as caught:
            stream.load_state_dict(state)
        assert message in str(caught.value)
        if not message.startswith(("sources: ", "sources.prose.files", "sources.code.blocks")):
            assert str(caught.value).count("saved ") == 2  # "the saved stream", and the one part


def test_settings_that_may_change_on_resume(config: DataConfig, tmp_path: Path) -> None:
    state = stream_of(config).state_dict()
    for changes in (
        {"workers": 3},
        {"token_cache": True, "cache_dir": tmp_path},
        {"on_bad_record": "skip"},
        {"too_long": "drop"},
        {"tokenizer_engine": "reference"},
        {"cache_gb": 1.0},
    ):
        stream_of(replace(config, **changes)).load_state_dict(state)


def test_incomplete_and_overlapping_states(config: DataConfig) -> None:
    first, second = (stream_of(config, lanes).state_dict() for lanes in (range(4), range(4, 8)))
    with pytest.raises(StreamStateError, match="lacks 4 lanes of this process, the first is 4; join the states"):
        stream_of(config).load_state_dict(first)
    with pytest.raises(StreamStateError, match="two stream states have the lane 0"):
        merge_states([first, second, first])
    with pytest.raises(StreamStateError, match="seed: saved 5, now 9"):
        merge_states([first, stream_of(config, range(4, 8), seed=9).state_dict()])
    with pytest.raises(StreamStateError, match="schema 1, and this version reads 2"):
        stream_of(config).load_state_dict(first | {"schema": 1})
    unknown = merge_states([first, second]) | {"lanes": [[0, 7], [8, 9]]}
    with pytest.raises(StreamStateError, match="has the lane 8, and there are only 8; it is damaged"):
        stream_of(config, range(4)).load_state_dict(unknown)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("current", 9, "there is no source 9"), ("place.0", 10**6, "place 1000000 of a permutation"),
        ("blocks.0", 0, "documents are taken of no block"),
    ],
)  # fmt: skip
def test_counters_of_no_lane(config: DataConfig, column: str, value: int, reason: str) -> None:
    stream = stream_of(config)
    list(islice(stream, 5 * NUM_LANES))
    state = stream.state_dict()
    lanes = {lane: list(counters) for lane, counters in lanes_of(state).items()}
    lanes[3][state["columns"].index(column)] = value
    lanes[3][state["columns"].index("place.0")] += 1
    damaged = state_of(state["fingerprint"], state["columns"], lanes, state["anchor"])
    with pytest.raises(
        StreamStateError, match=rf"is damaged \(lane 3: .*{reason}.*\); resume from an earlier checkpoint"
    ):
        stream_of(config).load_state_dict(damaged)


def test_an_offset_beyond_the_document(config: DataConfig) -> None:
    stream = stream_of(config)
    list(islice(stream, 5 * NUM_LANES))
    state = stream.state_dict()
    lanes = {lane: list(counters) for lane, counters in lanes_of(state).items()}
    lane = next(lane for lane, counters in lanes.items() if counters[state["columns"].index("offset")])
    lanes[lane][state["columns"].index("offset")] = 10**6
    again = stream_of(config)
    again.load_state_dict(state_of(state["fingerprint"], state["columns"], lanes, state["anchor"]))
    with pytest.raises(
        StreamStateError, match=r"a lane is at token 1000000 of a document of \d+ tokens\); resume from an"
    ):
        list(islice(again, 5 * NUM_LANES))


@pytest.mark.parametrize("lanes", [range(0), range(4, 9), range(-1, 2), range(0, 4, 2)])
def test_lanes_that_are_no_range_of_the_batch(config: DataConfig, lanes: range) -> None:
    with pytest.raises(ValueError, match="not a contiguous, non-empty part"):
        stream_of(config, lanes)


def test_bos_that_the_tokenizer_lacks(config: DataConfig, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="set bos = false"):
        stream_of(replace(config, tokenizer=tmp_path))


def test_no_sources(config: DataConfig) -> None:
    with pytest.raises(DataError, match="sources is empty"):
        stream_of(replace(config, sources={}))
