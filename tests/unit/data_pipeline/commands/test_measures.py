from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.commands.measures import Measures, measure, packed_fill, tokens_per_step
from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.encoding.loading import load_tokenizer
from data_pipeline.encoding.tokenizer import Tokenizer, TokenizerError
from data_pipeline.sources.source import Source, open_source

Write = Callable[[Path, Sequence[str]], Path]
TEXTS = ["the dog", "", "the quick brown fox é", "x", "the warm stones of the old yard " * 9]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_path)


def opened(path: Path, tokenizer_path: Path, **settings: object) -> tuple[Source, DataConfig]:
    source = SourceConfig(path=str(path), **{k: settings.pop(k) for k in ("kind",) if k in settings})  # type: ignore[arg-type]
    config = DataConfig(sources={"mine": source}, tokenizer=tokenizer_path, **settings)  # type: ignore[arg-type]
    return open_source("mine", source, cache_dir=None, cache_bytes=10**9), config


def test_counts_of_text(tmp_path: Path, write_jsonl: Write, tokenizer_path: Path, tokenizer: Tokenizer) -> None:
    source, config = opened(write_jsonl(tmp_path / "a.jsonl", TEXTS), tokenizer_path)
    told: list[tuple[str, int, int]] = []
    found = measure(source, config, tokenizer, progress=lambda *what: told.append(what))
    expected = [len(tokenizer.encode(text)) + 2 if text else 0 for text in TEXTS]
    assert found.lengths.tolist() == expected == found.used.tolist()
    assert found.empty == 1
    assert found.bad == found.too_long == 0
    assert found.text_bytes == sum(len(text.encode()) for text in TEXTS)
    # Every token but the first of each document is predicted.
    assert found.targets == sum(expected) - 4
    assert not found.is_estimate
    assert told[-1] == ("encoding mine", 5, 5)


def test_bad_records_are_counted_and_the_first_are_shown(
    tmp_path: Path, tokenizer_path: Path, tokenizer: Tokenizer
) -> None:
    lines = [b'{"text": "x"}', b'{"te', b'{"body": "x"}', b'{"text": 3}', *[b"[]"] * 9, b'{"text": "\xff"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    source, config = opened(tmp_path / "a.jsonl", tokenizer_path)
    found = measure(source, config, tokenizer)
    assert found.bad == 13
    assert len(found.bad_examples) == 5
    assert "a.jsonl, line 2" in found.bad_examples[0]
    assert "a.jsonl, line 3" in found.bad_examples[1]
    assert "'body'" not in found.bad_examples[0]
    assert "has no field 'text'" in found.bad_examples[1]


def test_worker_processes_find_the_same(
    tmp_path: Path, write_jsonl: Write, tokenizer_path: Path, tokenizer: Tokenizer
) -> None:
    source, config = opened(write_jsonl(tmp_path / "a.jsonl", TEXTS * 8), tokenizer_path)
    here, there = (measure(source, config, tokenizer, workers=workers) for workers in (0, 2))
    assert here.lengths.tolist() == there.lengths.tolist()
    assert (here.targets, here.text_bytes, here.empty) == (there.targets, there.text_bytes, there.empty)


def test_an_error_in_a_worker_comes_through(
    tmp_path: Path, write_jsonl: Write, tokenizer_path: Path, tokenizer: Tokenizer
) -> None:
    source, config = opened(write_jsonl(tmp_path / "a.jsonl", TEXTS * 8), tokenizer_path)
    broken = DataConfig(sources=config.sources, tokenizer=tmp_path / "none.model")
    with pytest.raises(TokenizerError, match=r"there is no tokenizer at .*none\.model"):
        measure(source, broken, tokenizer, workers=2)


def test_a_sample_estimates(tmp_path: Path, write_jsonl: Write, tokenizer_path: Path, tokenizer: Tokenizer) -> None:
    texts = [f"the dog {i}" * (i % 7 + 1) for i in range(600)]
    source, config = opened(write_jsonl(tmp_path / "a.jsonl", texts), tokenizer_path)
    every = measure(source, config, tokenizer)
    some = measure(source, config, tokenizer, sample=150, seed=3)
    assert len(some.lengths) == 150
    assert some.is_estimate
    assert some.scale == 4
    assert some.tokens * some.scale == pytest.approx(every.tokens, rel=0.15)
    assert set(some.lengths.tolist()) <= set(every.lengths.tolist())
    # A sample of more than there is is everything.
    assert measure(source, config, tokenizer, sample=10**6).lengths.tolist() == every.lengths.tolist()


def test_quantiles_are_of_documents_with_text() -> None:
    found = Measures("a", 12, lengths=np.array([0, 0, *range(1, 11)], dtype=np.int32))
    assert found.quantiles(0.5, 0.95, 1.0) == [5, 10, 10]
    assert Measures("a", 1, lengths=np.zeros(1, np.int32)).quantiles(0.5) == [0]


def test_tokens_of_a_step() -> None:
    # Half of the tokens in full rows, half in rows that are filled to a half: of 3 rows, 1 is full.
    assert tokens_per_step([0.5, 0.5], [1.0, 0.5], seq_len=100, rows=3) == pytest.approx(200)
    assert tokens_per_step([1.0], [1.0], seq_len=100, rows=3) == 300


@pytest.mark.parametrize(("too_long", "used"), [("cut", 20), ("drop", 0), ("fail", 0)])
def test_examples_too_long(
    tmp_path: Path, tokenizer_path: Path, tokenizer: Tokenizer, too_long: str, used: int
) -> None:
    records = [{"prompt": "the dog", "response": " sleeps on" * count} for count in (30, 1)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    source, config = opened(tmp_path / "a.jsonl", tokenizer_path, kind="prompt", seq_len=20, too_long=too_long)
    found = measure(source, config, tokenizer)
    assert found.too_long == (found.lengths > 20).sum() == 1
    short = int(found.lengths[1])
    assert found.used.tolist() == [used, short]
    assert found.text_bytes == sum(len(text) for record in records for text in record.values())
    # All but BOS and the prompt are targets.
    before = 1 + len(tokenizer.encode("the dog"))
    assert found.targets == max(used - before, 0) + short - before


def test_examples_that_lose_all_targets_when_cut_are_left_out(
    tmp_path: Path, tokenizer_path: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "N" * 30, "response": "dog"}) + "\n")
    source, config = opened(tmp_path / "a.jsonl", tokenizer_path, kind="prompt", seq_len=20, too_long="cut")
    found = measure(source, config, tokenizer)
    assert (found.too_long, found.used.tolist(), found.targets) == (1, [0], 0)


def test_fill_of_packed_rows(tokenizer_path: Path) -> None:
    sources = {name: SourceConfig(path="x.jsonl", kind="alpaca") for name in "ab"}
    config = DataConfig(sources=sources, tokenizer=tokenizer_path, seq_len=100)
    halves = np.full(2000, 50, dtype=np.int32)
    assert packed_fill({"a": halves, "b": halves}, config, 1) == pytest.approx(1, abs=0.01)
    assert packed_fill({"a": np.full(500, 60, dtype=np.int32)}, config, 1) == pytest.approx(0.6, abs=0.01)
