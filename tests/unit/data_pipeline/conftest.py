"""A small tokenizer and small sources, made once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from data_pipeline.demo.tokenizer import train_tokenizer

TEXT = "the quick brown fox jumps over the lazy dog, and the dog sleeps on\nthe warm stones of the old yard\n" * 8


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train_tokenizer([[TEXT], [TEXT.upper()]], 340))
    return path


@pytest.fixture(scope="session")
def write_jsonl() -> Callable[[Path, Sequence[str]], Path]:
    def write(path: Path, texts: Sequence[str]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        return path

    return write
