"""Studies in which no method differs from another: how many verdicts noise alone gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.claims.estimates import UNDECIDED
from evals.claims.result import Result, evaluate
from evals.claims.study import read_study
from tests.unit.evals.claims.synthetic import HIDDEN_KEY, Method, make_run, make_study

STUDIES = 24
RATES = (3e-4, 1e-3)
ALIKE = {
    "full": Method(width=1e6),
    "wd": Method(decay=0.3, width=1e6),
    "lora": Method(kind="lora", width=1e6),
    "mc": Method(kind="monteclora", width=1e6),
    "hk": Method(kind="lora", hidden_key=HIDDEN_KEY, width=1e6),
}


def null_study(root: Path, noise: int) -> Result:
    make_study(root, ALIKE, rates=RATES, budgets=(16, 32), documents=20, seed_noise=0.02, noise=noise)
    return evaluate(read_study([root]))


@pytest.fixture(scope="module")
def nulls(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Result]]:
    roots = [tmp_path_factory.mktemp(f"null{noise}") for noise in range(STUDIES)]
    return [(root, null_study(root, noise)) for noise, root in enumerate(roots)]


def test_noise_alone_has_few_verdicts_and_none_after_the_correction(nulls: list[tuple[Path, Result]]) -> None:
    findings = [finding for _, result in nulls for finding in result.findings]
    decided = [finding for finding in findings if finding.measured.verdict != UNDECIDED]
    survivors = [result for _, result in nulls if {result.verdict_corrected(f) for f in result.findings} != {UNDECIDED}]
    # Findings of a study share runs, so that their verdicts come in bunches: twice the 5 % of each.
    assert len(decided) <= 0.1 * len(findings)
    # With three seeds p-values are cautious.
    assert len(survivors) <= 1


def test_one_diverged_run_makes_no_verdict_by_itself(nulls: list[tuple[Path, Result]]) -> None:
    verdicts = []
    for noise, (root, _) in enumerate(nulls[::2]):
        run = root / f"code-lora-lr{RATES[1]:g}-seed2"
        run.rename(root.with_name(f"{root.name}-taken-out"))
        make_run(run, Method(kind="lora", width=1e6, diverges_at=RATES), lr=RATES[1], seed=2, budgets=(16, 32), documents=20,
                 seed_noise=0.02, noise=2 * noise)  # fmt: skip
        findings = evaluate(read_study([root])).findings
        verdicts += [finding.measured.verdict for finding in findings if finding.claim == 5]
    assert verdicts == [UNDECIDED] * (STUDIES // 2)
