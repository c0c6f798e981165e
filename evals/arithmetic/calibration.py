"""How far a model's probabilities can be trusted: its calibration, and what draws from its posterior add to it.

A model that chooses among k options is given log-likelihoods; its probabilities are their softmax. With a posterior over
weights, the prediction is the mean of the probabilities over draws, and how much the draws disagree is its uncertainty
about the weights. All logarithms are natural: entropies and log-likelihoods are in nats.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evals.arithmetic.forgetting import without_subsets

Floats = NDArray[np.float64]


def log_softmax(loglikelihoods: ArrayLike) -> Floats:
    """Log-probabilities [..., k] of k options: Bayes' rule for options that are equally likely a priori."""
    values = np.asarray(loglikelihoods, dtype=np.float64)
    # Shifted, the largest exponent is 0: nothing overflows, and large sums lose no digits.
    shifted = values - values.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def log_mean_exp(values: ArrayLike) -> Floats:
    """log(mean_i exp(values[i])) over the first axis, [draws, ...] -> [...]: a mixture's log-probability."""
    logs = np.asarray(values, dtype=np.float64)
    top = logs.max(axis=0)
    # Shifted by the largest, of probability 0 too, nothing overflows, and the mean of equal terms is that term exactly.
    shift = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(shift + np.log(np.exp(logs - shift).mean(axis=0)))


def negative_log_likelihood(log_probabilities: ArrayLike, answers: ArrayLike) -> Floats:
    """-log p(answer) of each question, in nats.

    Args:
        log_probabilities: [n, k], each row a distribution over k options.
        answers: [n], index of the true option.

    Returns:
        [n]; their mean is the NLL that papers report.
    """
    logs, index = np.asarray(log_probabilities, dtype=np.float64), np.asarray(answers, dtype=np.int64)
    assert logs.ndim == 2, logs.shape
    assert index.shape == logs.shape[:1], (index.shape, logs.shape)
    return np.asarray(0.0 - np.take_along_axis(logs, index[:, None], axis=1)[:, 0])


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, num_bins: int = 15) -> float:
    """ECE = sum_m |B_m| / n * |mean correct in B_m - mean confidence in B_m|, Guo et al. 2017 (arXiv 1706.04599), eq. 3.

    B_m holds the predictions whose confidence is in ((m - 1) / M, m / M], for M = `num_bins`; a confidence of 0 is in
    B_1. The estimate is biased upwards, the more so the fewer predictions a bin holds.

    Args:
        confidence: [n], probability given to the option chosen.
        correct: [n], 1 where the choice was right, 0 where it was wrong; a tie may have a part of 1.
        num_bins: M, at least 1.

    Returns:
        A number from 0 (calibrated) to 1.
    """
    trust, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    assert trust.shape == right.shape == (trust.size,), (trust.shape, right.shape)
    assert trust.size > 0, "no predictions"
    assert num_bins >= 1, num_bins
    assert ((trust >= 0) & (trust <= 1)).all(), "a confidence is a probability"
    inner_edges = np.arange(1, num_bins) / num_bins
    bins = np.digitize(trust, inner_edges, right=True)
    # |B_m| cancels: what counts is the sum of (correct - confidence) in each bin.
    gaps = np.bincount(bins, weights=right - trust, minlength=num_bins)
    return float(np.abs(gaps).sum() / trust.size)


def mutual_information(log_probabilities: ArrayLike) -> Floats:
    """H(mean_i p_i) - mean_i H(p_i): what knowing the weights would tell about the answer, in nats.

    Also called BALD (Houlsby et al. 2011, arXiv 1112.5745, eq. 2) or epistemic uncertainty: 0 when all draws predict
    the same, at most log(k) and at most log(number of draws).

    Args:
        log_probabilities: [draws, n, k], finite.

    Returns:
        [n], not negative.
    """
    logs = np.asarray(log_probabilities, dtype=np.float64)
    assert logs.ndim == 3, logs.shape
    return np.maximum(_entropy(log_mean_exp(logs)) - _entropy(logs).mean(axis=0), 0.0)


def calibrated(tasks: Mapping[str, Mapping[str, Any]], domain: str) -> list[str]:
    """A domain's tasks of choices, whose results have an NLL; of a task and a part of it (hellaswag@200) the larger."""
    return without_subsets(name for name, task in tasks.items() if task.get("domain") == domain and "nll" in task)


def means(tasks: Mapping[str, Mapping[str, Any]], domain: str) -> dict[str, float | None]:
    """NLL and ECE as means over a domain's tasks of choices.

    Args:
        tasks: the tasks of an evaluation.
        domain: new or old.

    Returns:
        nll, ece; None where no task has it, or it is undefined for one of them (the model diverged).
    """
    chosen = [tasks[name] for name in calibrated(tasks, domain)]
    values = {key: [task.get(key) for task in chosen] for key in ("nll", "ece")}
    return {
        key: statistics.fmean(known)
        if (known := [v for v in each if v is not None]) and len(known) == len(each)
        else None
        for key, each in values.items()
    }


def _entropy(log_probabilities: Floats) -> Floats:
    """[..., k] -> [...], in nats."""
    return np.asarray(-(np.exp(log_probabilities) * log_probabilities).sum(axis=-1))
