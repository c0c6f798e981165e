"""The instruction benchmark: the same pairs for all, whose tokens and targets are those of the stream; true counts."""

from __future__ import annotations

import gzip
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from benchmarks import instruction_step
from benchmarks.instruction_step import claims_of, invented_pairs, prepare, real_pairs

CONTENDERS = Path(__file__).resolve().parents[3] / "benchmarks" / "contenders"


@pytest.fixture
def instructions(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module that contenders share, imported as they import it."""
    monkeypatch.syspath_prepend(CONTENDERS)
    yield importlib.import_module("instructions")
    sys.modules.pop("instructions", None)


def test_real_pairs_are_problems_and_instructions(tmp_path: Path) -> None:
    assert real_pairs(tmp_path) == []
    sets: dict[str, list[dict[str, str]]] = {
        "gsm8k_train": [{"question": "1+1?", "answer": "2"}],
        "code_alpaca_2k": [
            {"instruction": "add", "input": "1, 2", "output": "3"}, {"instruction": "say", "input": "", "output": "a"},
            {"instruction": "nothing", "input": "", "output": ""},
        ],
    }  # fmt: skip
    for name, records in sets.items():
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    assert [tuple(pair.values()) for pair in real_pairs(tmp_path)] == [("1+1?", "2"), ("add\n1, 2", "3"), ("say", "a")]


def test_invented_pairs_have_log_normal_lengths() -> None:
    pairs = invented_pairs(3000)
    words = np.array([len(f"{pair['prompt']} {pair['response']}".split()) for pair in pairs])
    assert words.mean() == pytest.approx(100, rel=0.1)
    assert np.log(words).std() == pytest.approx(0.8, abs=0.08)
    assert all(pair["prompt"] and pair["response"] for pair in pairs)
    assert pairs == invented_pairs(3000)


def test_contenders_train_on_the_same_tokens(
    tmp_path: Path, instructions: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instruction_step, "VOCAB", 600)
    from data_pipeline.config import DataConfig, SourceConfig
    from data_pipeline.stream.token_stream import TokenStream

    folder = tmp_path / "pairs"
    facts = prepare(folder, invented_pairs(60), 20)
    examples = instructions.read_examples(folder)
    assert facts["examples"] == len(examples) == 20
    lengths = [len(example.input_ids) for example in examples]
    assert (facts["mean_tokens"], facts["most_tokens"]) == (np.mean(lengths), max(lengths))
    source = SourceConfig(
        path=str(folder / "pairs.jsonl"), kind="prompt", prompt_field="prompt", response_field="response"
    )
    data = DataConfig(
        sources={"pairs": source}, tokenizer=folder / "tokenizer.model", seq_len=2048, cache_dir=tmp_path / "cache"
    )
    row = next(TokenStream(data, num_lanes=1, lanes=range(1), seed=0))
    assert len(row.documents) > 2
    for document in row.documents:
        if document.source >= 0:
            example = examples[document.number]
            part = slice(document.start, document.start + len(example.input_ids))
            assert (row.input_ids[part] == example.input_ids).all()
            # Labels of a row are of the next token, those of transformers of the token itself.
            assert (row.labels[part][:-1] == example.labels[1:]).all()


def test_the_clock_counts_what_comes_behind_the_warm_up(
    instructions: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = instructions.Clock(1)
    for targets in (1000, 20, 30):
        clock.step_ended(targets, 64)
    clock.report()
    found = json.loads(capsys.readouterr().out)
    assert (found["steps"], found["targets"], found["positions"]) == (2, 50, 128)
    assert found["targets_per_second"] == pytest.approx(50 / found["seconds"])


def test_claims() -> None:
    def printed(rate: float) -> dict[str, Any]:
        return {"targets_per_second": rate, "targets_per_cpu_second": 2 * rate}

    results = {
        "ours": [printed(6.0), printed(8.0)],
        "padded": [printed(2.0), printed(2.0)],
        "grouped": [printed(4.0)] * 2,
    }
    found = {
        line["claim"]: (line["ratio"], line["goal"])
        for line in claims_of("x", results, {"largest_relative_difference": 2e-7})
    }
    assert found == {
        "useful_tokens_over_padded_x": (3.5, ">=2.5"), "useful_tokens_over_grouped_x": (1.75, ">=1"),
        "instruction_losses_x": (2e-7, "<=1e-5"),
    }  # fmt: skip
