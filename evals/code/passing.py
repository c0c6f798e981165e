"""pass@k: the probability that at least one of k samples passes, estimated without bias from n >= k samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evals.errors import EvalError


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """pass@k of one problem: 1 - C(n - c, k) / C(n, k) with n samples, of which c passed.

    The share of the k-subsets of the samples that hold a passing one. The quotient of binomial coefficients is the
    product of 1 - k / i over i = n - c + 1 ... n (Chen et al. 2021, "Evaluating Large Language Models Trained on Code").

    Raises:
        EvalError: not 0 <= passed <= samples, or not 1 <= k <= samples.
    """
    if not 0 <= passed <= samples or not 1 <= k <= samples:
        raise EvalError(
            f"pass@{k} of {samples} samples, {passed} of them passed, is not defined; it needs 1 <= k <= samples and "
            "0 <= passed <= samples"
        )
    if samples - passed < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(samples - passed + 1, samples + 1))


def mean_pass_at_k(samples: int, passed: Sequence[int], k: int) -> float:
    """The mean of pass@k over problems with `samples` samples each, of which `passed` passed."""
    return math.fsum(pass_at_k(samples, count, k) for count in passed) / len(passed)
