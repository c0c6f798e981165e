from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.encoding.loading import load_tokenizer
from data_pipeline.stream import epoch
from data_pipeline.stream.epoch import EpochRows, epoch_rows
from data_pipeline.stream.opening import open_data
from data_pipeline.stream.token_stream import PADDING, TokenStream

Write = Callable[[Path, Sequence[str]], Path]
SEED = 3
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "LAZY", "dog", "é"]


def some_texts(count: int, seed: int) -> list[str]:
    """Texts of very different lengths, some of them empty."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, int(random.exponential(12)))) for _ in range(count)]


@pytest.fixture
def sources(tmp_path: Path, write_jsonl: Write) -> dict[str, SourceConfig]:
    pairs = tmp_path / "pairs.jsonl"
    texts = some_texts(90, 3)
    pairs.write_text("".join(json.dumps({"prompt": text, "response": "fox"}) + "\n" for text in texts))
    return {
        "long": SourceConfig(path=str(write_jsonl(tmp_path / "long.jsonl", some_texts(130, 1)))),
        "short": SourceConfig(path=str(write_jsonl(tmp_path / "short.jsonl", some_texts(40, 2)))),
        "pairs": SourceConfig(path=str(pairs), kind="prompt"),
    }


def configured(tokenizer: Path, sources: dict[str, SourceConfig], **settings: object) -> DataConfig:
    return DataConfig(sources=sources, tokenizer=tokenizer, seq_len=48, too_long="drop", **settings)  # type: ignore[arg-type]


def rows_of(config: DataConfig) -> EpochRows:
    return epoch_rows(open_data(config, workers=0), seed=SEED)


def rows_that_begin_an_epoch(config: DataConfig, source: int) -> int:
    """Rows of a stream of one lane until no document of the source's first epoch is left, by looking into them."""
    stream = TokenStream(config, num_lanes=1, lanes=range(1), seed=SEED)

    def is_first(documents: Sequence[object]) -> bool:
        seen = [doc.epoch for doc in documents if doc.source == source]  # type: ignore[attr-defined]
        return not seen or min(seen) == 0

    return sum(1 for _ in takewhile(lambda row: is_first(row.documents), stream))


def test_text_is_counted_where_all_of_it_is_looked_at(sources: dict[str, SourceConfig], tokenizer_path: Path) -> None:
    config = configured(tokenizer_path, {"long": sources["long"]})
    found = rows_of(config)
    assert found == (rows_that_begin_an_epoch(config, 0), True)
    encode = load_tokenizer(tokenizer_path).encode
    tokens = [len(encode(text)) + 2 for text in some_texts(130, 1) if text]
    assert found.rows == -(-sum(tokens) // 48)


def test_tokens_on_disk_are_counted(sources: dict[str, SourceConfig], tokenizer_path: Path) -> None:
    config = configured(tokenizer_path, {"long": sources["long"]})
    cached = open_data(replace(config, token_cache=True), workers=0)
    assert epoch_rows(cached, seed=SEED, sample=1) == rows_of(config)


def test_examples_are_counted_as_they_are_packed(sources: dict[str, SourceConfig], tokenizer_path: Path) -> None:
    config = configured(tokenizer_path, {"pairs": sources["pairs"]})
    stream = TokenStream(config, num_lanes=4, lanes=range(4), seed=SEED)
    encoded = stream.data.encoded[0]
    assert encoded is not None
    left, rows = int(encoded.lengths.sum()), 0
    for row in stream:
        padding = [document.start for document in row.documents if document.source == PADDING]
        left, rows = left - (padding[0] if padding else 48), rows + 1
        if left <= 0:
            break
    assert rows_of(config) == (rows, True)
    # Rows have padding: there are more than the tokens alone would fill.
    assert rows >= -(-int(encoded.lengths.sum()) // 48)


def test_beyond_the_rows_that_are_packed_others_are_as_full(
    sources: dict[str, SourceConfig], tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tokenizer_path, {"pairs": sources["pairs"]})
    counted = rows_of(config)
    monkeypatch.setattr(epoch, "_PACKED_ROWS", counted.rows // 2)
    estimated = rows_of(config)
    assert not estimated.is_exact
    assert estimated.rows == pytest.approx(counted.rows, rel=0.15)


@pytest.mark.parametrize("names", [("long", "short"), ("short", "long")], ids=" ".join)
@pytest.mark.parametrize("lead", ["long", "short"])
def test_an_epoch_of_a_mixture_is_that_of_the_largest_weight(
    sources: dict[str, SourceConfig], tokenizer_path: Path, names: tuple[str, ...], lead: str
) -> None:
    mixture = {name: replace(sources[name], weight=3.0 if name == lead else 1.0) for name in names}
    config = configured(tokenizer_path, mixture)
    found = rows_of(config)
    assert found.is_exact
    # The other source's document that is begun at the end may be up to a few rows ahead or behind.
    assert found.rows == pytest.approx(rows_that_begin_an_epoch(config, names.index(lead)), abs=2)


def test_of_equal_weights_the_source_counts_that_takes_longest(
    sources: dict[str, SourceConfig], tokenizer_path: Path
) -> None:
    mixture = {name: replace(sources[name], weight=0.1) for name in ("short", "long")}
    alone = rows_of(configured(tokenizer_path, {"long": sources["long"]}))
    assert rows_of(configured(tokenizer_path, mixture)).rows in (2 * alone.rows - 1, 2 * alone.rows)


def test_text_and_examples_together(sources: dict[str, SourceConfig], tokenizer_path: Path) -> None:
    mixture = {"long": replace(sources["long"], weight=2.0), "pairs": sources["pairs"]}
    config = configured(tokenizer_path, mixture)
    stream = TokenStream(config, num_lanes=1, lanes=range(1), seed=SEED)
    rows = 0
    for row in stream:
        if any(document.source == 0 and document.epoch == 1 for document in row.documents):
            break
        rows += 1
    assert rows_of(config).rows == pytest.approx(rows, abs=3)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_estimate_is_near_and_the_same_everywhere(
    tmp_path: Path, write_jsonl: Write, tokenizer_path: Path, kind: str
) -> None:
    texts = some_texts(3000, 7)
    path = tmp_path / f"many.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=100)  # type: ignore[no-untyped-call]
    else:
        write_jsonl(path, texts)
    config = configured(tokenizer_path, {"many": SourceConfig(path=str(path))})
    data = open_data(config, workers=0)
    counted = epoch_rows(data, seed=SEED, sample=10**6)
    assert counted.is_exact
    estimates = [epoch_rows(data, seed=seed, sample=400) for seed in (SEED, SEED, 4)]
    assert not any(estimate.is_exact for estimate in estimates)
    assert estimates[0] == estimates[1] != estimates[2]
    for estimate in estimates:
        assert estimate.rows == pytest.approx(counted.rows, rel=0.05)


def test_a_sample_is_no_larger_than_need_be(
    tmp_path: Path, write_jsonl: Write, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "many.jsonl", [f"the {text}" for text in some_texts(500, 8)])
    data = open_data(configured(tokenizer_path, {"many": SourceConfig(path=str(path))}), workers=0)
    encoded: list[object] = []
    encode = data.encoders[0].encode
    monkeypatch.setattr(data.encoders[0], "encode", lambda record: (encoded.append(record), encode(record))[1])
    epoch_rows(data, seed=SEED, sample=20)
    assert len(encoded) == 20
    monkeypatch.setattr(epoch, "_SAMPLED_BYTES", 1)
    assert epoch_rows(data, seed=SEED, sample=500).is_exact is False
    assert len(encoded) == 21


def test_bad_records_have_no_tokens(tmp_path: Path, write_jsonl: Write, tokenizer_path: Path) -> None:
    texts = some_texts(60, 9)
    path = write_jsonl(tmp_path / "good.jsonl", texts)
    (tmp_path / "bad.jsonl").write_text(path.read_text() + '{"te\n{"body": "x"}\n')
    rows = [
        rows_of(configured(tokenizer_path, {"a": SourceConfig(path=str(tmp_path / f"{name}.jsonl"))}))
        for name in ("good", "bad")
    ]
    assert rows[0] == rows[1]


def test_without_text_there_is_one_row(tmp_path: Path, write_jsonl: Write, tokenizer_path: Path) -> None:
    path = write_jsonl(tmp_path / "empty.jsonl", [""] * 40)
    data = open_data(configured(tokenizer_path, {"empty": SourceConfig(path=str(path))}), workers=0)
    assert epoch_rows(data, seed=SEED) == (1, True)
    assert epoch_rows(data, seed=SEED, sample=5) == (1, False)
