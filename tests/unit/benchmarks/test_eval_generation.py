"""The benchmark of generation: what it asks where the real sets are missing, and what it counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import eval_generation
from benchmarks.eval_generation import (
    CODE_STOP,
    Case,
    code_prompts,
    end_texts,
    make_model,
    make_tokenizer,
    ours,
    timed,
    word_prompts,
)


def test_without_the_real_sets_there_are_prompts_of_the_same_kind(tmp_path: Path) -> None:
    code, words = code_prompts(tmp_path), word_prompts(tmp_path)
    assert len(code) >= 12
    assert all("def " in text for text in code)
    assert len(words) >= 48
    assert all(text.count("Question:") == 6 and text.endswith("Answer:") for text in words)


def test_texts_tokens_and_forwards_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_generation, "MAX_LENGTH", 256)
    prompts = [text[:100] for text in code_prompts(tmp_path)[:2]]
    tokenizer = make_tokenizer(prompts, 300)
    model = make_model(len(tokenizer), is_small=True)
    case = Case(name="x", prompts=prompts, samples=2, temperature=0.2, top_p=0.95, max_new_tokens=4, stop=CODE_STOP)
    found = timed(ours(model, tokenizer), case, model, tokenizer)
    assert len(found["texts"]) == 4
    assert found["tokens"] == sum(len(tokenizer(text)["input_ids"]) + 1 for text in found["texts"])
    assert 1 <= found["forwards"] <= 5
    assert found["through"] >= 2 * max(len(tokenizer(text)["input_ids"]) for text in prompts)


def test_contenders_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[object] = []

    def timed(write: object, *_: object) -> dict[str, object]:
        order.append(write)
        return {"texts": ["a"], "rate": 1.0, "tokens": 1, "through": 1, "forwards": 1, "seconds": 1.0}

    monkeypatch.setattr(eval_generation, "end_texts", lambda *_: None)
    monkeypatch.setattr(eval_generation, "ours", lambda *_: "ours")
    monkeypatch.setattr(eval_generation, "theirs", lambda *_: "HFLM")
    monkeypatch.setattr(eval_generation, "timed", timed)
    case = Case(name="x", prompts=["a"], samples=1, temperature=0.2, top_p=1.0, max_new_tokens=1, stop=())
    found = eval_generation.measure(case, None, None, size="bench")
    assert order == ["HFLM", "HFLM", "ours", "HFLM", "HFLM", "ours"]
    assert {name: len(runs) for name, runs in found["runs"].items()} == {"ours": 2, "HFLM": 2}


def test_texts_end_before_they_are_as_long_as_they_may_be(tmp_path: Path) -> None:
    prompts = [text[:60] for text in code_prompts(tmp_path)[:3]]
    tokenizer = make_tokenizer(prompts, 300)
    model = make_model(len(tokenizer), is_small=True)
    case = Case(name="x", prompts=prompts, samples=2, temperature=1.0, top_p=1.0, max_new_tokens=20, stop=())
    end_texts(model, tokenizer, case)
    texts = ours(model, tokenizer)(case)
    assert sum(len(tokenizer(text)["input_ids"]) for text in texts) < 20 * len(texts)
