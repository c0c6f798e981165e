from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.encoding.reference_tokenizer import ReferenceTokenizer
from data_pipeline.sources.errors import DataError
from data_pipeline.stream import opening
from data_pipeline.stream.opening import open_data
from data_pipeline.stream.token_stream import TokenStream
from data_pipeline.tokens import encoded

Write = Callable[[Path, Sequence[str]], Path]


@pytest.fixture
def config(tmp_path: Path, write_jsonl: Write, tokenizer_path: Path) -> DataConfig:
    text = write_jsonl(tmp_path / "text.jsonl", [f"text {n} " + "the dog " * (n % 7) for n in range(300)])
    chats = tmp_path / "pairs.jsonl"
    chats.write_text("".join(json.dumps({"prompt": f"ask {n}", "response": "fox"}) + "\n" for n in range(20)))
    return DataConfig(
        sources={"text": SourceConfig(path=str(text)), "pairs": SourceConfig(path=str(chats), kind="prompt")},
        tokenizer=tokenizer_path,
        seq_len=64,
    )


def test_what_is_opened_fits_together(config: DataConfig) -> None:
    data = open_data(config, workers=0)
    assert [source.name for source in data.sources] == ["text", "pairs"]
    assert [source.num_documents for source in data.sources] == [300, 20]
    assert data.encoded[0] is None
    assert data.encoded[1] is not None
    assert len(data.encoded[1].lengths) == 20
    assert open_data(replace(config, token_cache=True), workers=0).encoded[0] is not None


def test_streams_can_share_it(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_data(config, workers=0)
    own = TokenStream(config, num_lanes=4, lanes=range(4), seed=1)
    monkeypatch.setattr(opening, "open_source", lambda *args, **others: pytest.fail("opened again"))
    shared = [TokenStream(config, num_lanes=4, lanes=range(4), seed=1, data=data) for _ in range(2)]
    expected = [row.input_ids.tolist() for row in islice(own, 20)]
    for stream in shared:
        assert stream.sources is data.sources
        assert [row.input_ids.tolist() for row in islice(stream, 20)] == expected


def test_the_fast_engine_is_tried_with_texts_from_all_over_the_sources(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def check(self: ReferenceTokenizer, texts: Iterable[str]) -> list[str]:
        tried.extend(texts)
        return []

    monkeypatch.setattr(ReferenceTokenizer, "check_engine", check)
    open_data(config, workers=0)
    numbers = [int(text.split()[1]) for text in tried if text.startswith("text ")]
    assert 20 <= len(numbers) <= 64
    assert numbers[0] < 30 < 270 < numbers[-1]
    assert "ask 0" in tried
    assert "fox" in tried
    first = list(tried)
    tried.clear()
    open_data(config, workers=0)
    assert tried == first  # on every rank
    tried.clear()
    open_data(replace(config, tokenizer_engine="reference"), workers=0)
    assert not [text for text in tried if text.startswith("text ")]


def test_an_engine_that_fails_is_used_nowhere(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReferenceTokenizer, "check_engine", lambda self, texts: [t for t in texts if t == "ask 7"])
    engines: list[str] = []
    encode_source = encoded.encode_source

    def spy(source: Any, settings: DataConfig, *args: Any, **others: Any) -> Any:
        engines.append(settings.tokenizer_engine)
        return encode_source(source, settings, *args, **others)

    monkeypatch.setattr(encoded, "encode_source", spy)
    data = open_data(config, workers=0)
    assert engines == ["reference"]
    assert data.config == config


def test_progress_is_told(config: DataConfig) -> None:
    told: list[tuple[str, int, int]] = []
    open_data(config, workers=0, progress=lambda *args: told.append(args))
    assert told
    assert all(0 <= done <= total for _, done, total in told)


def test_texts_in_messages_are_found() -> None:
    value = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": [{"text": "fox"}, 3, None]}]
    assert list(opening._texts(value)) == ["user", "hello", "assistant", "fox"]
    assert list(opening._texts(None)) == []


def test_no_sources(config: DataConfig) -> None:
    with pytest.raises(DataError, match="sources is empty; name at least one"):
        open_data(replace(config, sources={}))
