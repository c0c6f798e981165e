"""Bits per byte: how many bits the model needs to encode a byte of held-out text. Lower is better.

Bits per byte compares models with different tokenizers, which per-token loss cannot, and needs no threshold or prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from evals.arithmetic.calibration import log_mean_exp
from evals.arithmetic.estimators import ratio
from evals.config import TaskConfig
from evals.held_out.documents import draw_documents
from evals.scoring.rows import Encode, Example, Row

METRIC = "bits_per_byte"
HIGHER_IS_BETTER = False


def build(task: TaskConfig, *, encode: Encode, bos_id: int, seq_len: int, eos_id: int | None = None) -> list[Example]:
    """An example per document, its tokens cut into windows such that every token is scored exactly once.

    A document is beginning-of-text followed by its tokens. Window k reads tokens k*seq_len ... (k+1)*seq_len - 1 and
    predicts each one's successor: windows do not overlap in what they read, and carry no context from one to the
    next. The same windows are used before and after training. The end of text is not scored.
    """
    documents = draw_documents(task.path, seed=task.seed, max_bytes=task.max_document_bytes)[: task.max_examples]
    return [_example(doc.id, doc.text, [bos_id, *encode(doc.text)], seq_len) for doc in documents]


def _example(doc_id: str, text: str, ids: list[int], seq_len: int) -> Example:
    windows = (ids[start : start + seq_len + 1] for start in range(0, len(ids) - 1, seq_len))
    rows = tuple(Row(tuple(window), first=1) for window in windows)
    return Example(doc_id, rows, {"bytes": len(text.encode()), "tokens": len(ids) - 1})


def summarize(
    task: TaskConfig, examples: Sequence[Example], loglikelihoods: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Score = sum(nll) / ln 2 / sum(bytes), a ratio of sums over documents, with the ratio estimator's standard error. Examples
    that say which document they are from are clusters of it.

    Args:
        task: the task (unused; all tasks share this signature).
        examples: what `build` returned.
        loglikelihoods: for each example, its rows' log-likelihoods in nats.
    """
    records = [
        {"id": example.id, "nll": -math.fsum(values), **example.details}
        for example, values in zip(examples, loglikelihoods, strict=True)
    ]
    bits, sizes = [r["nll"] / math.log(2) for r in records], [r["bytes"] for r in records]
    score, stderr = ratio(bits, sizes, [r.get("document", r["id"]) for r in records])
    return {"score": score, "stderr": stderr, "chance": None, "examples": records}


def summarize_posterior(
    task: TaskConfig, examples: Sequence[Example], draws: Sequence[Sequence[Sequence[float]]]
) -> dict[str, Any]:
    """Score the posterior predictive: a window's probability is its mean under the draws of weights.

    log p(window) = log(mean_i exp(log p_i(window))), a mixture over whole windows: one draw writes all of a window.

    Args:
        task: the task (unused; all tasks share this signature).
        examples: what `build` returned.
        draws: for each draw, for each example, its rows' log-likelihoods in nats.
    """
    mixture = [
        log_mean_exp([loglikelihoods[index] for loglikelihoods in draws]).tolist() for index in range(len(examples))
    ]
    return {"samples": len(draws), "score": summarize(task, examples, mixture)["score"]}
