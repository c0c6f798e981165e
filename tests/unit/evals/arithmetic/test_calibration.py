"""Calibration against numbers worked out by hand, plain loops and torch.distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical

from evals.arithmetic.calibration import (
    calibrated,
    expected_calibration_error,
    log_mean_exp,
    log_softmax,
    means,
    mutual_information,
    negative_log_likelihood,
)

unit = st.floats(0, 1)
predictions = st.lists(st.tuples(unit, st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=40)
loglikelihoods = st.floats(-300, 0)


def logs(draws: int = 5, n: int = 7, k: int = 4, seed: int = 0) -> np.ndarray:
    return log_softmax(np.random.default_rng(seed).normal(0, 3, (draws, n, k)))


def loop_ece(confidence: list[float], correct: list[float], num_bins: int) -> float:
    """The definition of Guo et al., bin by bin."""
    error = 0.0
    for m in range(1, num_bins + 1):
        low, high = (m - 1) / num_bins, m / num_bins
        members = [i for i, c in enumerate(confidence) if low < c <= high or (m == 1 and c == 0)]
        if members:
            accuracy = sum(correct[i] for i in members) / len(members)
            trust = sum(confidence[i] for i in members) / len(members)
            error += len(members) / len(confidence) * abs(accuracy - trust)
    return error


def test_calibration_error_by_hand() -> None:
    # Two bins. (0, 0.5]: confidence 0.3 and 0.5, half right: |0.5 - 0.4| = 0.1, weight 2/5.
    # (0.5, 1]: confidence 0.6, 0.9, 0.9, two right: |2/3 - 0.8| = 0.1333, weight 3/5.
    error = expected_calibration_error([0.3, 0.5, 0.6, 0.9, 0.9], [0, 1, 0, 1, 1], num_bins=2)
    assert error == pytest.approx(2 / 5 * 0.1 + 3 / 5 * (0.8 - 2 / 3))


def test_edges_belong_to_the_bin_below() -> None:
    # In one bin the errors of 0.5 (right) and 0.75 (wrong) would cancel; apart they add up.
    assert expected_calibration_error([0.5, 0.75], [1, 0], num_bins=2) == pytest.approx((0.5 + 0.75) / 2)
    assert expected_calibration_error([0.5, 0.25], [1, 0], num_bins=2) == pytest.approx(0.125)
    assert expected_calibration_error([0.0, 1.0], [0, 1]) == 0


def test_the_overconfident_and_the_honest() -> None:
    assert expected_calibration_error([1.0] * 4, [0] * 4) == 1
    assert expected_calibration_error([0.25] * 4, [1, 0, 0, 0]) == pytest.approx(0)
    assert expected_calibration_error([0.25] * 4, [0.25] * 4) == 0  # all tied: no preference, credit is chance


@given(pairs=predictions, num_bins=st.integers(1, 20))
def test_calibration_error_is_its_definition(pairs: list[tuple[float, float]], num_bins: int) -> None:
    confidence, correct = [p[0] for p in pairs], [p[1] for p in pairs]
    error = expected_calibration_error(confidence, correct, num_bins)
    assert error == pytest.approx(loop_ece(confidence, correct, num_bins), abs=1e-12)
    assert 0 <= error <= 1
    # By the triangle inequality, bins can only find more than the gap of the averages.
    assert error >= abs(sum(confidence) - sum(correct)) / len(pairs) - 1e-12
    order = sorted(range(len(pairs)), key=lambda i: pairs[i])
    shuffled = expected_calibration_error([confidence[i] for i in order], [correct[i] for i in order], num_bins)
    assert shuffled == pytest.approx(error, abs=1e-12)


def test_negative_log_likelihood_by_hand() -> None:
    probabilities = [[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]
    assert negative_log_likelihood(np.log(probabilities), [0, 1]) == pytest.approx([math.log(2), math.log(5)])
    sure = negative_log_likelihood([[0.0, -math.inf]], [0])
    assert sure.tolist() == [0.0]
    assert not np.signbit(sure).any()


@given(st.lists(loglikelihoods, min_size=1, max_size=6), st.floats(-1e6, 0))
def test_softmax_is_normalised_and_ignores_a_common_factor(values: list[float], common: float) -> None:
    probabilities = np.exp(log_softmax(values))
    assert probabilities.sum() == pytest.approx(1)
    assert probabilities.max() <= 1
    assert probabilities == pytest.approx(torch.softmax(torch.tensor(values, dtype=torch.float64), 0).numpy())
    assert np.exp(log_softmax(np.array(values) + common)) == pytest.approx(probabilities, abs=1e-8)


@given(st.lists(loglikelihoods, min_size=1, max_size=6))
def test_a_mixture_is_the_mean_of_probabilities(values: list[float]) -> None:
    mixture = float(log_mean_exp(values))
    expected = torch.logsumexp(torch.tensor(values, dtype=torch.float64), 0) - math.log(len(values))
    assert mixture == pytest.approx(float(expected), abs=1e-12)
    assert min(values) - 1e-12 <= mixture <= max(values)


def test_a_mixture_of_the_same_and_of_the_impossible() -> None:
    assert log_mean_exp([-0.1, -0.1, -0.1]) == -0.1
    assert log_mean_exp([-1e5, -1e5 + 1]) == pytest.approx(-1e5 + math.log((1 + math.e) / 2))
    assert log_mean_exp([-math.inf, -math.inf]) == -math.inf
    assert log_mean_exp([-math.inf, 0.0]) == pytest.approx(math.log(0.5))
    assert math.isnan(log_mean_exp([math.nan, 0.0]))


def test_mutual_information_by_hand() -> None:
    # Two draws, each certain, of different answers: H(mean) = log 2, mean H = 0 (in the limit).
    certain = log_softmax([[[0.0, -500.0]], [[-500.0, 0.0]]])
    assert mutual_information(certain) == pytest.approx([math.log(2)])
    # Both undecided: all uncertainty is about the data, none about the weights.
    assert mutual_information(np.log(np.full((2, 1, 2), 0.5))) == pytest.approx([0])


def test_mutual_information_is_that_of_torch_distributions() -> None:
    draws = logs()
    members = Categorical(logits=torch.from_numpy(draws))
    mixture = Categorical(probs=members.probs.mean(0))
    expected = mixture.entropy() - members.entropy().mean(0)
    assert mutual_information(draws) == pytest.approx(expected.numpy())


@given(draws=st.integers(1, 6), k=st.integers(2, 5), seed=st.integers(0, 99))
def test_mutual_information_is_bounded(draws: int, k: int, seed: int) -> None:
    information = mutual_information(logs(draws, 3, k, seed))
    assert (information >= 0).all()
    assert (information <= min(math.log(draws), math.log(k)) + 1e-12).all()
    one = logs(1, 3, k, seed)
    assert mutual_information(np.repeat(one, draws, axis=0)) == pytest.approx(np.zeros(3), abs=1e-12)


def test_what_is_not_a_number_stays_so_without_a_warning() -> None:
    draws = logs()
    draws[2, 3] = math.nan
    information, mixture = mutual_information(draws), log_mean_exp(draws)
    assert np.isnan(information).tolist() == [index == 3 for index in range(7)]
    assert np.isnan(mixture).any(axis=1).tolist() == [index == 3 for index in range(7)]
    assert np.isnan(log_softmax([math.nan] * 3)).all()


def test_means_are_over_a_domains_tasks_of_choices() -> None:
    tasks = {
        "hellaswag": {"domain": "old", "nll": 1.0, "ece": 0.1},
        "hellaswag@50": {"domain": "old", "nll": 9.0, "ece": 0.9},
        "winogrande": {"domain": "old", "nll": 0.5, "ece": 0.2},
        "prose": {"domain": "old", "metric": "bits_per_byte", "score": 2.0},
        "gsm8k": {"domain": "new", "metric": "accuracy", "score": 0.2},
        "code": {"domain": "new", "nll": 0.7, "ece": None},
    }
    assert calibrated(tasks, "old") == ["hellaswag", "winogrande"]
    assert means(tasks, "old") == {"nll": 0.75, "ece": pytest.approx(0.15)}
    assert means(tasks, "new") == {"nll": 0.7, "ece": None}
    assert means({"gsm8k": tasks["gsm8k"]}, "new") == {"nll": None, "ece": None}
