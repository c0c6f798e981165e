"""Continuation choice: given a passage, which of several continuations is the true one? Higher is better.

Questions are made from held-out text: a context, the tokens that really follow it, and as many tokens from each of
several other documents. The model's choice is the continuation with the highest log-likelihood. All continuations have
the same number of tokens, so their sums are compared as they are: dividing by token count would change nothing.
Before the continuations are read, each is as likely as the others to be the true one, so by Bayes' rule the softmax over
their log-likelihoods is the model's probability for each.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from evals.arithmetic import calibration
from evals.arithmetic.estimators import ratio
from evals.config import TaskConfig, choice_fits
from evals.errors import EvalError
from evals.held_out.documents import draw_documents
from evals.scoring.rows import Encode, Example, Row

METRIC = "accuracy"
HIGHER_IS_BETTER = True

_ATTEMPTS = 100
"""Draws of a wrong continuation before giving up on finding one that differs (boilerplate repeats itself)."""


def build(task: TaskConfig, *, encode: Encode, bos_id: int, seq_len: int, eos_id: int | None = None) -> list[Example]:
    """Draw questions from passages that do not overlap, spread evenly over the documents.

    Every cut is at a token boundary of the encoded document, so the tokens are those of the running text. A question's
    draws depend only on the seed, its document's id and the documents drawn.

    Raises:
        EvalError: rows are longer than `seq_len`, or too few documents are long enough.
    """
    length = task.context_tokens + task.continuation_tokens
    if not choice_fits(task, seq_len):
        raise EvalError(
            f"context_tokens + continuation_tokens = {length} do not fit into rows of {seq_len} tokens; lower them"
        )
    documents = _long_enough(task, encode, length)
    passages = {doc_id: _passages(doc_id, ids, task, length) for doc_id, ids in documents.items()}
    places = [
        (doc_id, number, starts[number])
        for number in range(max(len(starts) for starts in passages.values()))
        for doc_id, starts in passages.items()
        if number < len(starts)
    ]
    return [_question(*place, documents, task, bos_id) for place in places[: task.max_examples]]


def _long_enough(task: TaskConfig, encode: Encode, length: int) -> dict[str, list[int]]:
    """Token ids by document, of documents with at least `length` tokens; as many as there can be questions."""
    documents: dict[str, list[int]] = {}
    for doc in draw_documents(task.path, seed=task.seed, max_bytes=task.max_document_bytes):
        ids = list(encode(doc.text))
        if len(ids) >= length:
            documents[doc.id] = ids
        if len(documents) == max(task.max_examples, task.num_choices):
            break
    if len(documents) < task.num_choices:
        raise EvalError(
            f"{task.path}: {len(documents)} documents have the {length} tokens of context and continuation, and "
            f"num_choices = {task.num_choices} needs at least that many; give more documents, or lower context_tokens "
            "or num_choices"
        )
    return documents


def _passages(doc_id: str, ids: list[int], task: TaskConfig, length: int) -> list[int]:
    """Starts of a document's non-overlapping passages, in the random order in which they are used."""
    rng = random.Random(f"{task.seed}/{doc_id}")
    offset = rng.randrange(len(ids) % length + 1)
    starts = list(range(offset, len(ids) - length + 1, length))
    rng.shuffle(starts)
    return starts


def _question(
    doc_id: str, number: int, start: int, documents: dict[str, list[int]], task: TaskConfig, bos_id: int
) -> Example:
    question_id = f"{doc_id}#{number}"
    rng = random.Random(f"{task.seed}/{question_id}")
    ids, cut = documents[doc_id], start + task.context_tokens
    context = (bos_id, *ids[start:cut])
    truth = tuple(ids[cut : cut + task.continuation_tokens])
    choices = _wrong_continuations(rng, doc_id, documents, truth, task)
    answer = rng.randrange(task.num_choices)
    choices.insert(answer, truth)
    rows = tuple(Row(context + choice, first=len(context)) for choice in choices)
    return Example(question_id, rows, {"document": doc_id, "answer": answer})


def _wrong_continuations(
    rng: random.Random, doc_id: str, documents: dict[str, list[int]], truth: tuple[int, ...], task: TaskConfig
) -> list[tuple[int, ...]]:
    others = [other for other in documents if other != doc_id]
    rng.shuffle(others)
    wrong: list[tuple[int, ...]] = []
    for attempt in range(_ATTEMPTS):
        ids = documents[others[attempt % len(others)]]
        start = rng.randrange(len(ids) - task.continuation_tokens + 1)
        choice = tuple(ids[start : start + task.continuation_tokens])
        if choice != truth and choice not in wrong:
            wrong.append(choice)
        if len(wrong) == task.num_choices - 1:
            return wrong
    raise EvalError(
        f"{task.path}: found no {task.num_choices - 1} continuations that differ from the one of document {doc_id!r}; "
        "the documents repeat each other, remove duplicates"
    )


def summarize(
    task: TaskConfig, examples: Sequence[Example], loglikelihoods: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Score = mean credit: 1 if the true continuation is most likely, 1/k if it shares first place with k - 1 others.

    So a model without preferences scores exactly chance, and no tie favours the answer. The standard error takes
    documents, not questions, as independent. `nll` and `ece` judge the model's probabilities, the softmax over the
    choices' log-likelihoods: the mean of -log p(answer) in nats, and the expected calibration error of the choice.

    A model whose log-likelihoods are not finite has made no choice: credit 0, and no probabilities. Then `nll` of that
    question is None, and so are `nll` and `ece` of the task: without the questions it failed on, it would look better.
    """
    answers = [ex.details["answer"] for ex in examples]
    log_probabilities = _log_probabilities(loglikelihoods)
    nll = calibration.negative_log_likelihood(log_probabilities, answers)
    records = [
        {
            "id": ex.id,
            "correct": _credit(values, answer),
            "nll": float(loss) if math.isfinite(loss) else None,
            **ex.details,
            "loglikelihoods": list(values),
        }
        for ex, values, answer, loss in zip(examples, loglikelihoods, answers, nll, strict=True)
    ]
    credits_ = [r["correct"] for r in records]
    score, stderr = ratio(credits_, [1] * len(records), [r["document"] for r in records])
    return {
        "score": score,
        "stderr": stderr,
        "chance": 1 / task.num_choices,
        "nll": _mean(nll),
        "ece": _calibration_error(log_probabilities, credits_),
        "examples": records,
    }


def summarize_posterior(
    task: TaskConfig, examples: Sequence[Example], draws: Sequence[Sequence[Sequence[float]]]
) -> dict[str, Any]:
    """Score the posterior predictive p = mean_i p_i, p_i the softmax over the choices under the i-th draw of weights.

    Score, `nll` and `ece` are those of `summarize`, of p. `mutual_information` is the mean over questions of
    H(p) - mean_i H(p_i) in nats: how much the draws disagree. A question on which any draw is not finite counts as
    one without probabilities.

    Args:
        task: the task (unused; all tasks share this signature).
        examples: what `build` returned.
        draws: for each draw, for each example, its rows' log-likelihoods in nats.
    """
    answers = [ex.details["answer"] for ex in examples]
    by_draw = np.stack([_log_probabilities(loglikelihoods) for loglikelihoods in draws])
    predictive = calibration.log_mean_exp(by_draw)
    credits_ = [_credit(row.tolist(), answer) for row, answer in zip(predictive, answers, strict=True)]
    return {
        "samples": len(draws),
        "score": math.fsum(credits_) / len(credits_),
        "nll": _mean(calibration.negative_log_likelihood(predictive, answers)),
        "ece": _calibration_error(predictive, credits_),
        "mutual_information": _mean(calibration.mutual_information(by_draw)),
    }


def _log_probabilities(loglikelihoods: Sequence[Sequence[float]]) -> calibration.Floats:
    """[questions, choices]; nan for all choices of a question with a log-likelihood that is not finite."""
    values = np.array(loglikelihoods, dtype=np.float64)
    values[~np.isfinite(values).all(axis=1)] = np.nan
    return calibration.log_softmax(values)


def _calibration_error(log_probabilities: calibration.Floats, credits_: Sequence[float]) -> float | None:
    confidence = np.exp(log_probabilities.max(axis=1))
    return None if np.isnan(confidence).any() else calibration.expected_calibration_error(confidence, credits_)


def _mean(values: calibration.Floats) -> float | None:
    return None if np.isnan(values).any() else float(values.mean())


def _credit(loglikelihoods: Sequence[float], answer: int) -> float:
    if not all(math.isfinite(value) for value in loglikelihoods):
        return 0.0
    best = max(loglikelihoods)
    return 1 / list(loglikelihoods).count(best) if loglikelihoods[answer] == best else 0.0
