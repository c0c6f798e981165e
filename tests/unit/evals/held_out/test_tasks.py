"""How the tasks cut text into rows, and how they turn log-likelihoods into scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evals.config import TaskConfig
from evals.errors import EvalError
from evals.held_out import bits_per_byte, continuation_choice
from evals.held_out.bits_per_byte import _example
from evals.scoring.rows import Example, fingerprint

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


def questions(answers: list[int]) -> list[Example]:
    return [Example(f"d{i}#0", (), {"document": f"d{i}", "answer": answer}) for i, answer in enumerate(answers)]


def choices_of(k: int) -> TaskConfig:
    return TaskConfig(kind="continuation_choice", path=Path("x"), domain="new", num_choices=k)


def test_probabilities_are_judged_by_hand() -> None:
    # p(answer) = 1/2 (right), 1/4 (right, of 1/4 each: a tie) and 0.2 (wrong, with confidence 0.8).
    values = [[math.log(p) - 40 for p in row] for row in ([0.25, 0.5, 0.25], [1, 1, 1], [0.8, 0.2, 1e-300])]
    result = continuation_choice.summarize(choices_of(3), questions([1, 0, 1]), values)
    losses = [math.log(2), math.log(3), math.log(5)]
    assert [e["nll"] for e in result["examples"]] == pytest.approx(losses)
    assert result["nll"] == pytest.approx(sum(losses) / 3)
    # Bins of 1/15 hold one prediction each: |1 - 1/2|, |1/3 - 1/3| and |0 - 0.8|.
    assert result["ece"] == pytest.approx((0.5 + 0 + 0.8) / 3)


def test_a_model_without_preferences_is_calibrated() -> None:
    result = continuation_choice.summarize(choices_of(4), questions([0, 1, 2, 3]), [[-7.0] * 4] * 4)
    assert (result["score"], result["nll"]) == (0.25, pytest.approx(math.log(4)))
    assert result["ece"] == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_question_without_probabilities_leaves_the_task_without_calibration(broken: float) -> None:
    task, examples = choices_of(2), questions([0, 0])
    values = [[-1.0, -2.0], [broken, -2.0]]
    result = continuation_choice.summarize(task, examples, values)
    assert (result["score"], result["nll"], result["ece"]) == (0.5, None, None)
    assert [e["nll"] for e in result["examples"]] == [pytest.approx(math.log1p(math.exp(-1))), None]
    whole = [[-1.0, -2.0], [-1.0, -2.0]]
    assert continuation_choice.summarize_posterior(task, examples, [whole, values]) == {
        "samples": 2,
        "score": 0.5,
        "nll": None,
        "ece": None,
        "mutual_information": None,
    }


def test_the_posterior_predictive_is_the_average_over_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 20, 4, generator=generator, dtype=torch.float64) * 3 - 50
    answers = [index % 4 for index in range(20)]
    result = continuation_choice.summarize_posterior(choices_of(4), questions(answers), values.tolist())
    members = torch.softmax(values, -1)
    mixture = members.mean(0)
    chosen = mixture[torch.arange(20), torch.tensor(answers)]
    entropy = torch.special.entr(mixture).sum(-1) - torch.special.entr(members).sum(-1).mean(0)
    assert result["samples"] == 3
    assert result["score"] == pytest.approx(float((mixture.argmax(-1) == torch.tensor(answers)).double().mean()))
    assert result["nll"] == pytest.approx(float(-chosen.log().mean()))
    assert result["mutual_information"] == pytest.approx(float(entropy.mean()))
    bins: dict[int, list[float]] = {}
    for row, answer in zip(mixture.tolist(), answers, strict=True):
        bins.setdefault(math.ceil(max(row) * 15), []).append(float(row.index(max(row)) == answer) - max(row))
    assert result["ece"] == pytest.approx(sum(abs(sum(gaps)) for gaps in bins.values()) / 20)


def test_draws_can_outvote_the_most_confident() -> None:
    # Two of three draws prefer the answer, but the third is sure of the other: the average decides, not the vote.
    draws = [[[math.log(p), math.log(1 - p)]] for p in (0.6, 0.6, 0.01)]
    result = continuation_choice.summarize_posterior(choices_of(2), questions([0]), draws)
    assert result["score"] == 0
    assert result["nll"] == pytest.approx(-math.log((0.6 + 0.6 + 0.01) / 3))


def test_ties_of_all_draws_stay_ties() -> None:
    result = continuation_choice.summarize_posterior(choices_of(3), questions([2]), [[[-7.1, -9.3, -7.1]]] * 3)
    assert result["score"] == 0.5


@given(st.lists(st.lists(st.floats(-80, -1), min_size=3, max_size=3), min_size=1, max_size=4), st.integers(1, 5))
def test_equal_draws_are_the_model_itself(values: list[list[float]], samples: int) -> None:
    examples = questions([index % 3 for index in range(len(values))])
    one = continuation_choice.summarize(choices_of(3), examples, values)
    result = continuation_choice.summarize_posterior(choices_of(3), examples, [values] * samples)
    assert (result["nll"], result["ece"]) == (pytest.approx(one["nll"]), pytest.approx(one["ece"], abs=1e-12))
    assert result["mutual_information"] == pytest.approx(0, abs=1e-12)


def test_draws_mix_whole_windows() -> None:
    task = TaskConfig(kind="bits_per_byte", path=Path("x"), domain="old")
    examples = [Example("a", (), {"bytes": 3, "tokens": 3}), Example("b", (), {"bytes": 2, "tokens": 2})]
    draws = [[[-4.0, -2.0], [-5.0]], [[-3.0, -6.0], [-5.0]]]
    result = bits_per_byte.summarize_posterior(task, examples, draws)
    windows = [(math.exp(-4) + math.exp(-3)) / 2, (math.exp(-2) + math.exp(-6)) / 2, math.exp(-5)]
    assert result == {"samples": 2, "score": pytest.approx(-sum(map(math.log2, windows)) / 5)}
    # By Jensen's inequality no worse than the draws on average.
    single = [bits_per_byte.summarize(task, examples, draw)["score"] for draw in draws]
    assert result["score"] <= np.mean(single)


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
