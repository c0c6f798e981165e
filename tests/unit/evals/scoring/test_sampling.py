"""Drawn tokens: the distribution they come from, the sets they are restricted to, and what they depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from transformers import TopKLogitsWarper, TopPLogitsWarper

from evals.scoring.sampling import NOT_FINITE, choose, restrict, sequence_key, uniforms


def draw(
    logits: Tensor, uniform: Tensor | float, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0
) -> Tensor:
    rows = len(logits)
    return choose(
        logits, temperature=torch.full((rows,), temperature), top_p=torch.full((rows,), top_p, dtype=torch.float64),
        top_k=torch.full((rows,), top_k), uniform=torch.as_tensor(uniform, dtype=torch.float64).expand(rows),
    )  # fmt: skip


@pytest.mark.parametrize(("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (0.5, 1.0, 0), (2.0, 0.8, 0), (1.0, 1.0, 3),
                                                             (1.5, 0.7, 4)])  # fmt: skip
def test_tokens_have_the_probabilities_that_the_settings_say(temperature: float, top_p: float, top_k: int) -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.2, -3.0, 0.5])
    count = 20_000
    numbers = uniforms([sequence_key(3, (1, 2), sample) for sample in range(count)], [0] * count)
    tokens = draw(
        logits.expand(count, -1), torch.from_numpy(numbers), temperature=temperature, top_p=top_p, top_k=top_k
    )
    warped = logits[None] / temperature
    if top_k:
        warped = TopKLogitsWarper(top_k)(None, warped)
    if top_p < 1:
        warped = TopPLogitsWarper(top_p)(None, warped)
    expected = count * torch.softmax(warped[0].double(), -1).numpy()
    seen = np.bincount(tokens.numpy(), minlength=len(logits))
    assert not seen[expected == 0].any()
    is_possible = expected > 0
    statistic = float(((seen - expected) ** 2)[is_possible] @ (1 / expected[is_possible]))
    freedom = int(is_possible.sum()) - 1
    assert torch.special.gammaincc(torch.tensor(freedom / 2), torch.tensor(statistic / 2)) > 1e-3, "chi-squared test"


@example(117, 0.01, 117, 150, 0.1)
@given(
    st.integers(0, 2**32), st.floats(0.01, 1.0), st.integers(0, 200), st.sampled_from([5, 150, 1000]), st.floats(0.1, 5)
)
def test_what_is_left_out_is_what_transformers_leaves_out(
    seed: int, top_p: float, top_k: int, vocabulary: int, spread: float
) -> None:
    logits = spread * torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(seed))
    warped = TopPLogitsWarper(top_p)(None, TopKLogitsWarper(top_k)(None, logits) if top_k else logits)
    expected = warped.isfinite()
    probabilities = torch.softmax(logits, -1)
    kept = restrict(probabilities, torch.full((3,), top_p, dtype=torch.float64), torch.full((3,), top_k)) > 0
    for row in torch.nonzero((kept != expected).any(-1)).flatten().tolist():
        exact = (
            probabilities[row].double()
            / probabilities[row].double().topk(min(top_k or vocabulary, vocabulary))[0].sum()
        )
        in_both, in_one = exact[kept[row] & expected[row]], exact[kept[row] != expected[row]]
        # Where the sum reaches top_p but for rounding a token more or less is right, and any number without weight.
        is_rounding = abs(float(in_both.sum()) - top_p) < 1e-5 and float(in_one.sum() - in_one.max()) < 1e-5
        is_tie = bool((kept[row] | ~expected[row]).all() and (in_one == in_both.min()).all())
        assert is_rounding or is_tie


def test_rows_with_their_own_settings_share_a_call() -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    settings = [(0.0, 1.0, 0), (0.7, 0.9, 0), (1.0, 1.0, 5), (1.3, 1.0, 0)]
    uniform = torch.tensor([0.1, 0.5, 0.9, 0.3], dtype=torch.float64)
    temperature, top_p, top_k = (torch.tensor(column) for column in zip(*settings, strict=True))
    together = choose(logits, temperature=temperature, top_p=top_p.double(), top_k=top_k, uniform=uniform)
    alone = [
        int(draw(logits[row : row + 1], float(uniform[row]), temperature=t, top_p=p, top_k=k))
        for row, (t, p, k) in enumerate(settings)
    ]
    assert together.tolist() == alone
    assert together[0] == logits[0].argmax()


def test_equal_tokens_are_kept_together_and_the_first_is_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 1.0, 1.0, -9.0]])
    assert draw(logits, 0.9, temperature=0.0).item() == 1
    assert (restrict(torch.softmax(logits, -1), torch.tensor([0.3]), torch.tensor([0])) > 0).tolist() == [
        [False, True, True, False]
    ]
    assert draw(logits, 0.9, top_k=1).item() == 2


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_the_ends_of_the_interval_give_tokens_that_are_possible(number: float) -> None:
    logits = torch.full((2, 1000), -200.0)
    logits[0, 500], logits[1] = 3.0, 0.0
    tokens = draw(logits, number, top_p=0.999)
    assert tokens[0] == 500
    assert 0 <= tokens[1] < 1000


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_say_nothing(temperature: float) -> None:
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor([[0.0, nan], [inf, 0.0], [-inf, -inf], [0.0, -inf]])
    assert draw(logits, 0.5, temperature=temperature, top_p=0.9).tolist() == [NOT_FINITE, NOT_FINITE, NOT_FINITE, 0]


def test_numbers_are_uniform_and_independent() -> None:
    keys = [sequence_key(0, (5, 6), sample) for sample in range(2000)]
    numbers = np.stack([uniforms(keys, [position] * len(keys)) for position in range(5)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    ranked = np.sort(numbers.ravel())
    distance = np.abs(ranked - (np.arange(len(ranked)) + 0.5) / len(ranked)).max()
    assert distance < 1.95 / len(ranked) ** 0.5, "Kolmogorov-Smirnov test at 0.1 %"
    # Between positions of a sequence, and between neighbouring samples.
    assert np.abs(np.corrcoef(numbers) - np.eye(5)).max() < 0.1
    assert abs(np.corrcoef(numbers[0, :-1], numbers[0, 1:])[0, 1]) < 0.1


def test_a_number_depends_on_seed_prompt_sample_and_position_and_nothing_else() -> None:
    keys = {
        sequence_key(*case)
        for case in [(0, (1, 2), 0), (1, (1, 2), 0), (0, (12,), 0), (0, (1, 2), 1), (0, (1, 2, 0), 0)]
    }
    assert len(keys) == 5
    first, second = sorted(keys)[:2]
    assert uniforms([first, second], [3, 4])[1] == uniforms([second], [4])[0]
    assert len({*uniforms([first] * 100, list(range(100)))}) == 100


def test_the_hash_is_splitmix64() -> None:
    # The first outputs for seed 1234567 that implementations of it are checked with.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert uniforms([1234567] * 3, [0, 1, 2]).tolist() == [(number >> 11) * 2.0**-53 for number in expected]
