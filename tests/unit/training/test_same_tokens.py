"""Held-out responses are scored on the tokens that training learns of the same records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.demo.corpus import build_demo_corpus
from data_pipeline.encoding.examples import Encoder
from data_pipeline.encoding.loading import load_tokenizer
from evals.config import TaskConfig
from evals.encoder import load_codec
from evals.held_out.response_bits_per_byte import build

SEQ_LEN = 200


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "corpus"
    build_demo_corpus(out, vocab_size=512, max_files=30)
    return out


@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("template", [None, "### Instruction:\n{prompt}\n### Response: "])
def test_ids_and_targets_are_those_of_training(corpus: Path, eos: bool, template: str | None) -> None:
    path = corpus / "pairs" / "train.jsonl"
    fields: dict[str, Any] = {"template": template}
    task = TaskConfig(kind="response_bits_per_byte", domain="new", path=path, max_examples=10**6, **fields)
    codec = load_codec(corpus)
    assert codec.bos_id is not None
    scored = build(
        task, encode=codec.encode, bos_id=codec.bos_id, eos_id=codec.eos_id if eos else None, seq_len=SEQ_LEN
    )
    source = SourceConfig(path=str(path), kind="prompt", **fields)
    data = DataConfig(sources={"pairs": source}, tokenizer=corpus / "tokenizer.model", seq_len=SEQ_LEN, eos=eos)
    encoder = Encoder(source, data, load_tokenizer(data.tokenizer))
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    learned = {record["id"]: encoder.encode(record) for record in records}
    # What training drops as too long is left out.
    kept = {name: example for name, example in learned.items() if len(example.ids) <= SEQ_LEN}
    assert 20 < len(kept) < len(learned)
    assert {example.id for example in scored} == kept.keys()
    for example in scored:
        (row,) = example.rows
        ids, is_target = kept[example.id]
        assert row.ids == tuple(ids.tolist())
        assert is_target is not None
        assert np.flatnonzero(is_target).tolist() == list(range(row.first, len(row.ids)))
