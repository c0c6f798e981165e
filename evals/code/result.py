"""The entry of a code task in evals/<step>.json, from the verdicts on what the model wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from evals.arithmetic.estimators import ratio
from evals.code.diversity import count_unique, mean_unique
from evals.code.passing import mean_pass_at_k
from evals.code.program import Verdict
from evals.errors import EvalError


def summarize(
    problems: Sequence[str],
    generations: Sequence[Sequence[str]],
    verdicts: Sequence[Sequence[Verdict]],
    ks: Sequence[int],
) -> dict[str, Any]:
    """Score = pass@1, the mean over problems of the share of samples that passed.

    Args:
        problems: ids of the problems.
        generations: for each problem, the texts that the model wrote; as many for each.
        verdicts: for each problem, the verdicts on them.
        ks: the k of pass@k; those above the number of samples are left out.

    Returns:
        `score`, its standard error over problems, `n` problems, `chance`, `pass_at_k` by k, `samples_per_problem`,
        `unique` texts per problem, `reasons` (how often each verdict), and `examples`: for each problem its `id`,
        `correct` (share that passed) and `unique`.

    Raises:
        EvalError: no problems, or problems with different numbers of generations or verdicts.
    """
    samples = len(generations[0]) if generations else 0
    wrong = [
        f"{problem}: {len(texts)} generations, {len(judged)} verdicts"
        for problem, texts, judged in zip(problems, generations, verdicts, strict=True)
        if not len(texts) == len(judged) == samples
    ]
    if not samples or wrong:
        raise EvalError(
            "pass@k needs problems, and as many generations and verdicts for each; "
            f"expected {samples}: {'; '.join(wrong[:5]) or 'there are none'}"
        )
    passed = [[verdict.passed for verdict in judged] for judged in verdicts]
    examples: list[dict[str, Any]] = [
        {"id": problem, "correct": sum(flags) / samples, "unique": count_unique(texts, flags)}
        for problem, texts, flags in zip(problems, generations, passed, strict=True)
    ]
    score, stderr = ratio([example["correct"] for example in examples], [1] * len(examples))
    counts = [sum(flags) for flags in passed]
    return {
        "score": score,
        "stderr": stderr,
        "n": len(examples),
        "chance": 0.0,
        "pass_at_k": {str(k): mean_pass_at_k(samples, counts, k) for k in sorted(set(ks)) if k <= samples},
        "samples_per_problem": samples,
        "unique": mean_unique([example["unique"] for example in examples]),
        "reasons": dict(Counter(verdict.reason for judged in verdicts for verdict in judged).most_common()),
        "examples": examples,
    }
