"""Answers against rows one by one, for the models, heads and batches there are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from evals.errors import EvalError
from evals.scoring.rows import Row
from evals.scoring.scorer import Answer, Scorer
from evals.scoring.stopping import Stopped
from training.model.attention import ATTENTION
from training.model.loss_head import LossHead, LossRequest

Make = Callable[..., Any]


def scorer(model: Any, **changes: Any) -> Scorer:
    return Scorer(**({"model": model, "device": "cpu", "pad_id": 0, "max_length": 128} | changes))


@pytest.fixture(scope="module")
def model(make_model: Make) -> Any:
    return make_model()


@pytest.fixture(scope="module")
def expected(model: Any, questions: list[Row], brute_force: Make) -> list[Answer]:
    return brute_force(model, questions)


@pytest.fixture
def shapes(model: Any) -> Any:
    """Shapes of the model's inputs, as they come."""
    seen: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, named: seen.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    yield seen
    hook.remove()


def greedy_rows(model: Any, rows: list[Row]) -> list[Row]:
    """The rows with the model's own choice in place of their last scored token."""
    chosen = []
    for row in rows:
        with torch.no_grad():
            choice = int(model(input_ids=torch.tensor([row.ids[:-1]])).logits[0, -1].argmax())
        chosen.append(Row((*row.ids[:-1], choice), first=len(row.ids) - 1))
    return chosen


@pytest.mark.parametrize("batch_tokens", [1, 37, 200, 8192])
def test_batches_make_no_difference(
    batch_tokens: int, model: Any, questions: list[Row], expected: list[Answer], assert_same: Make
) -> None:
    assert_same(scorer(model, batch_tokens=batch_tokens).score(questions), expected)


def test_the_order_of_rows_makes_no_difference(
    model: Any, questions: list[Row], expected: list[Answer], assert_same: Make
) -> None:
    assert_same(scorer(model).score(questions[::-1])[::-1], expected)


def test_first_choices_are_recognised(model: Any, questions: list[Row], brute_force: Make, assert_same: Make) -> None:
    rows = questions + greedy_rows(model, questions)
    found = scorer(model).score(rows)
    assert_same(found, brute_force(model, rows))
    assert all(answer.is_greedy for answer in found[len(questions) :])
    assert not all(answer.is_greedy for answer in found)


def test_padding_is_not_seen(model: Any, questions: list[Row], expected: list[Answer]) -> None:
    assert scorer(model, pad_id=0).score(questions) == scorer(model, pad_id=77).score(questions)


def test_contexts_are_computed_once(model: Any, shapes: list[tuple[int, int]]) -> None:
    context = tuple(range(3, 63))
    rows = [Row((*context, ending, ending + 1, ending + 2), first=60) for ending in (70, 75, 80, 85)]
    scorer(model).score(rows)
    assert shapes == [(1, 60 + 4 * 2)]


@pytest.mark.parametrize("attention", ["sdpa", "eager", ATTENTION])
def test_attention_sees_nothing_of_the_padding(
    attention: str,
    make_model: Make,
    questions: list[Row],
    expected: list[Answer],
    assert_same: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nothing is scored a second time because it was not a number.
    monkeypatch.delattr("evals.scoring.scorer.alone")
    assert_same(scorer(make_model(attention=attention)).score(questions), expected)


def test_half_precision(make_model: Make, questions: list[Row], brute_force: Make) -> None:
    half = make_model().to(torch.bfloat16)
    found, expected = scorer(half).score(questions), brute_force(half, questions)
    # A state is rounded to 8 bits, here and there in another place.
    assert [a.loglikelihood for a in found] == pytest.approx([a.loglikelihood for a in expected], abs=0.5, rel=0.03)


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_head_is_left_as_it_was(
    is_tied: bool, make_model: Make, questions: list[Row], brute_force: Make, assert_same: Make
) -> None:
    model = make_model(tie_word_embeddings=is_tied)
    expected = brute_force(model, questions)
    assert_same(scorer(model).score(questions), expected)
    assert "forward" not in vars(model.lm_head)
    assert brute_force(model, questions) == expected


def test_a_head_that_computes_losses_keeps_its_forward(
    make_model: Make, questions: list[Row], expected: list[Answer], assert_same: Make
) -> None:
    model = make_model()
    head = LossHead(model)
    replaced = model.lm_head.forward
    assert_same(scorer(model).score(questions), expected)
    assert model.lm_head.forward == replaced
    ids = torch.tensor([questions[0].ids])
    with head.asked(LossRequest(index=torch.tensor([0]), targets=ids[0, 1:2])), torch.no_grad():
        assert model(input_ids=ids).logits.shape == (2,)


def test_a_head_with_an_adapter(make_model: Make, questions: list[Row], brute_force: Make, assert_same: Make) -> None:
    class Adapted(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base = base
            self.down = nn.Linear(base.in_features, 2, bias=False)
            self.up = nn.Linear(2, base.out_features, bias=False)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.base(hidden) + self.up(self.down(hidden))
            return result

    model = make_model()
    plain = brute_force(model, questions)
    model.lm_head = Adapted(model.lm_head)
    expected = brute_force(model, questions)
    assert expected != plain
    assert_same(scorer(model).score(questions), expected)


def test_logits_in_many_chunks(
    model: Any, questions: list[Row], expected: list[Answer], assert_same: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evals.scoring.forward.CHUNK_BYTES", {"cpu": 3 * 4 * 101, "cuda": 1})
    widths: list[int] = []
    own = model.lm_head.forward

    def recorded(hidden: torch.Tensor) -> Any:
        widths.append(len(hidden))
        return own(hidden)

    model.lm_head.forward = recorded
    try:
        assert_same(scorer(model).score(questions), expected)
    finally:
        del model.lm_head.forward
    assert max(widths) == 3
    assert widths.count(3) > 20


def test_an_unknown_model_is_asked_the_ordinary_way(
    make_model: Make, questions: list[Row], expected: list[Answer], assert_same: Make
) -> None:
    model = make_model()
    model.config.model_type = "unheard-of"
    seen: list[set[str]] = []
    model.register_forward_pre_hook(lambda _, args, named: seen.append(set(named)), with_kwargs=True)
    assert_same(scorer(model).score(questions), expected)
    assert all(names == {"input_ids", "attention_mask", "use_cache"} for names in seen)


def test_logits_that_are_not_finite(make_model: Make, questions: list[Row], expected: list[Answer]) -> None:
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[5] = math.nan
    found = scorer(model).score(questions)
    assert all(math.isnan(answer.loglikelihood) and not answer.is_greedy for answer in found)
    # One token without an embedding spoils the rows that read it, and no other.
    model = make_model(tie_word_embeddings=False)
    token = questions[0].ids[2]
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = math.inf
    is_spoiled = [math.isnan(answer.loglikelihood) for answer in scorer(model, batch_tokens=60).score(questions)]
    assert is_spoiled == [token in row.ids[:-1] for row in questions]
    assert not all(is_spoiled)


def test_a_long_row_keeps_its_end(model: Any, brute_force: Make, assert_same: Make) -> None:
    ids = tuple(3 + k % 90 for k in range(60))
    found = scorer(model, max_length=20).score([Row(ids, first=50)])
    assert_same(found, brute_force(model, [Row(ids[-21:], first=11)]))
    with pytest.raises(EvalError, match="30 tokens of a row are to be scored, and the model reads 20 at most"):
        scorer(model, max_length=20).score([Row(ids, first=30)])


def test_stopping_is_asked_before_every_forward(model: Any, questions: list[Row], shapes: list[Any]) -> None:
    model.train()
    with pytest.raises(Stopped):
        scorer(model, batch_tokens=1, should_stop=lambda: len(shapes) == 2).score(questions)
    assert len(shapes) == 2
    assert model.training
    model.eval()


def test_progress_counts_forwards_on_rank_0(model: Any, questions: list[Row], shapes: list[Any]) -> None:
    calls: list[tuple[int, int]] = []
    scorer(model, batch_tokens=60, progress=lambda *call: calls.append(call)).score(questions)
    assert calls == [(done, len(shapes)) for done in range(1, len(shapes) + 1)]


def test_no_rows_need_no_forward(model: Any, shapes: list[Any]) -> None:
    assert scorer(model).score([]) == []
    assert shapes == []
