"""How the tasks cut text into rows, and how they turn log-likelihoods into scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals import bits_per_byte, continuation_choice
from evals.bits_per_byte import _example
from evals.config import TaskConfig
from evals.errors import EvalError
from evals.examples import Example, fingerprint

BOS = 1
TEXTS = ["".join(chr(97 + (i * 7 + j * j) % 26) for j in range(60 + 11 * i)) for i in range(8)]


def encode(text: str) -> list[int]:
    """A token per byte."""
    return [byte + 3 for byte in text.encode()]


def choice_task(path: Path, **settings: object) -> TaskConfig:
    values = {"max_examples": 30, "context_tokens": 10, "continuation_tokens": 5} | settings
    return TaskConfig(kind="continuation_choice", path=path, domain="new", **values)  # type: ignore[arg-type]


@given(length=st.integers(1, 60), seq_len=st.integers(1, 20))
def test_windows_score_every_token_exactly_once(length: int, seq_len: int) -> None:
    ids = [BOS, *range(100, 100 + length)]
    example = _example("d", "x" * length, ids, seq_len)
    scored = [token for row in example.rows for token in row.ids[row.first :]]
    assert scored == ids[1:]
    assert all(len(row.ids) - 1 <= seq_len for row in example.rows)
    assert all(row.first == 1 for row in example.rows)


def test_bits_per_byte_is_bits_over_utf8_bytes(jsonl: Callable[..., Path]) -> None:
    task = TaskConfig(kind="bits_per_byte", path=jsonl(["ab", "é", "xyz"]), domain="old")
    examples = bits_per_byte.build(task, encode=encode, bos_id=BOS, seq_len=2)
    # Three bits per byte for every document: score 3, no spread.
    values = [[-3 * math.log(2) * len(row.ids[1:]) for row in example.rows] for example in examples]
    result = bits_per_byte.summarize(task, examples, values)
    assert result["score"] == pytest.approx(3)
    assert result["stderr"] == pytest.approx(0, abs=1e-12)
    assert sorted(e["bytes"] for e in result["examples"]) == [2, 2, 3]
    assert [e["tokens"] for e in result["examples"]] == [e["bytes"] for e in result["examples"]]


def test_max_examples_is_a_subset_of_more(jsonl: Callable[..., Path]) -> None:
    path = jsonl(TEXTS)
    few, many = (
        bits_per_byte.build(
            TaskConfig(kind="bits_per_byte", path=path, domain="new", max_examples=n),
            encode=encode,
            bos_id=BOS,
            seq_len=16,
        )
        for n in (3, 100)
    )
    assert len(few) == 3
    assert len(many) == len(TEXTS)
    assert many[:3] == few


def test_questions_are_cut_from_the_documents(jsonl: Callable[..., Path]) -> None:
    task = choice_task(jsonl(TEXTS))
    examples = continuation_choice.build(task, encode=encode, bos_id=BOS, seq_len=15)
    running = {f"d{i}": encode(text) for i, text in enumerate(TEXTS)}
    assert len(examples) == 30
    assert len({example.id for example in examples}) == 30
    for example in examples:
        answer = example.details["answer"]
        contexts = {row.ids[: row.first] for row in example.rows}
        choices = [row.ids[row.first :] for row in example.rows]
        assert len(contexts) == 1
        assert len(set(choices)) == 4
        assert {len(choice) for choice in choices} == {5}
        (context,) = contexts
        assert context[0] == BOS
        assert contains(running[example.details["document"]], [*context[1:], *choices[answer]])
        others = [ids for name, ids in running.items() if name != example.details["document"]]
        for index, choice in enumerate(choices):
            assert index == answer or any(contains(ids, list(choice)) for ids in others)


def contains(ids: list[int], part: list[int]) -> bool:
    return any(ids[start : start + len(part)] == part for start in range(len(ids)))


def test_passages_of_a_document_do_not_overlap_and_documents_take_turns(jsonl: Callable[..., Path]) -> None:
    task = choice_task(jsonl(TEXTS), max_examples=100)
    examples = continuation_choice.build(task, encode=encode, bos_id=BOS, seq_len=15)
    # Each document has len // 15 passages.
    assert len(examples) == sum(len(text) // 15 for text in TEXTS)
    assert {example.id for example in examples[:8]} == {f"d{i}#0" for i in range(8)}
    for index in range(8):
        starts = continuation_choice._passages(f"d{index}", encode(TEXTS[index]), task, 15)
        assert all(b - a >= 15 for a, b in zip(sorted(starts), sorted(starts)[1:], strict=False))
        assert max(starts) + 15 <= len(TEXTS[index])


def test_answers_are_spread_over_positions_and_seeds_differ(jsonl: Callable[..., Path]) -> None:
    path = jsonl([text * 3 for text in TEXTS])
    builds = [
        continuation_choice.build(choice_task(path, max_examples=100, seed=seed), encode=encode, bos_id=BOS, seq_len=15)
        for seed in (0, 0, 1)
    ]
    assert builds[0] == builds[1]
    assert fingerprint(builds[0]) == fingerprint(builds[1]) != fingerprint(builds[2])
    counts = [sum(e.details["answer"] == position for e in builds[0]) for position in range(4)]
    assert min(counts) >= 10


@pytest.mark.parametrize(
    ("values", "credit"),
    [
        ([-3.0, -1.0, -2.0], 1.0),
        ([-1.0, -3.0, -2.0], 0.0),
        ([-1.0, -1.0, -2.0], 0.5),
        ([-1.0, -1.0, -1.0], 1 / 3),
        ([-1.0, -2.0, -1.0], 0.0),
        ([math.nan, -1.0, -2.0], 0.0),
    ],
)
def test_credit_is_shared_among_ties(values: list[float], credit: float) -> None:
    task = TaskConfig(kind="continuation_choice", path=Path("x"), domain="new", num_choices=3)
    examples = [Example("a#0", (), {"document": "a", "answer": 1})]
    result = continuation_choice.summarize(task, examples, [values])
    assert result["score"] == pytest.approx(credit)
    assert result["chance"] == pytest.approx(1 / 3)
    assert result["stderr"] is None


def test_questions_of_one_document_are_one_unit_of_the_standard_error() -> None:
    task = TaskConfig(kind="continuation_choice", path=Path("x"), domain="new", num_choices=2)
    examples = [Example(f"{d}#{i}", (), {"document": d, "answer": 0}) for d in "ab" for i in range(2)]
    result = continuation_choice.summarize(task, examples, [[0.0, -1.0], [0.0, -1.0], [-1.0, 0.0], [-1.0, 0.0]])
    # Two units with means 1 and 0, each of two questions: s / sqrt(2) = 0.7071 / 1.4142 = 0.5.
    assert result["score"] == 0.5
    assert result["stderr"] == pytest.approx(0.5)


def test_too_few_long_documents(jsonl: Callable[..., Path]) -> None:
    task = choice_task(jsonl(["short", *TEXTS[:3]]))
    with pytest.raises(EvalError, match=r"3 documents have the 15 tokens .* num_choices = 4"):
        continuation_choice.build(task, encode=encode, bos_id=BOS, seq_len=15)


def test_rows_too_short_for_a_question(jsonl: Callable[..., Path]) -> None:
    with pytest.raises(EvalError, match="= 15 do not fit into rows of 14 tokens"):
        continuation_choice.build(choice_task(jsonl(TEXTS)), encode=encode, bos_id=BOS, seq_len=14)


def test_documents_that_repeat_each_other(jsonl: Callable[..., Path]) -> None:
    with pytest.raises(EvalError, match="the documents repeat each other"):
        continuation_choice.build(choice_task(jsonl(["a" * 40] * 5)), encode=encode, bos_id=BOS, seq_len=15)
