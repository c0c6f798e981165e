"""All claims on a study whose truth is known, the correction for many comparisons, and the reasons that are given."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from evals.claims.catalogue import CLAIMS
from evals.claims.comparisons import EQUAL_LEARNING
from evals.claims.estimates import FAILS, HOLDS, UNDECIDED
from evals.claims.findings import Finding
from evals.claims.reasons import reasons, verdicts
from evals.claims.result import Result, as_json, evaluate
from evals.claims.study import read_study
from tests.unit.evals.claims.synthetic import HIDDEN_KEY, STUDY, Method, make_study

OPPOSITE = {
    "full": Method(learned=0.3, forgotten=0.05, k=30),
    "full_wd": Method(learned=0.3, forgotten=0.04, decay=0.5),
    "full_dropout": Method(learned=0.3, forgotten=0.05, attention_dropout=0.1),
    "lora_r16": Method(kind="lora", learned=0.5, forgotten=0.2, width=4.0),
    "hidden_key": Method(kind="lora", learned=0.35, forgotten=0.2, hidden_key=HIDDEN_KEY),
    "monteclora": Method(kind="monteclora", learned=0.5, forgotten=0.2, width=0.8),
}


@pytest.fixture(scope="module")
def papers_way(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return evaluate(read_study([make_study(tmp_path_factory.mktemp("study"), STUDY)]))


@pytest.fixture(scope="module")
def other_way(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return evaluate(read_study([make_study(tmp_path_factory.mktemp("opposite"), OPPOSITE)]))


def of_claim(result: Result, number: int) -> list[Finding]:
    return [finding for finding in result.findings if finding.claim == number]


def main_findings(result: Result) -> Iterator[Finding]:
    """Those whose truth the study has: not the spread over seeds, which is the same everywhere, nor ranks."""
    return (f for f in result.findings if "ratio" not in f.what and f.claim != 4)


def test_what_is_true_holds(papers_way: Result) -> None:
    assert {f.measured.verdict for f in main_findings(papers_way)} == {HOLDS}
    assert {f.claim for f in papers_way.findings} == {1, 2, 3, 4, 5, 6}
    ranks = {f.rank: f.measured.verdict for f in of_claim(papers_way, 4)}
    assert ranks == {4: HOLDS, 16: FAILS, 0: HOLDS}
    assert not any(answer.missing for _, answer in papers_way.answers)


def test_what_is_false_does_not_hold(other_way: Result) -> None:
    assert {f.measured.verdict for f in main_findings(other_way)} == {FAILS}


def test_nothing_in_it_makes_verdicts(tmp_path: Path) -> None:
    alike = {
        "full": Method(), "lora": Method(kind="lora"), "mc": Method(kind="monteclora"), "wd": Method(decay=0.3),
        "hk": Method(kind="lora", hidden_key=HIDDEN_KEY),
    }  # fmt: skip
    result = evaluate(read_study([make_study(tmp_path, alike)]))
    decided = [f for f in result.findings if f.measured.verdict != UNDECIDED]
    assert len(decided) <= 0.3 * len(result.findings)
    assert {result.verdict_corrected(f) for f in result.findings} == {UNDECIDED}


def test_absent_methods_are_not_measured(tmp_path: Path) -> None:
    result = evaluate(read_study([make_study(tmp_path, {"full": STUDY["full"], "mc": STUDY["monteclora"]})]))
    assert result.findings == []
    assert [list(answer.missing) for _, answer in result.answers] == [
        ["code: not measured: no runs with LoRA"],
        ["code: not measured: no runs with LoRA"],
        [
            "code: not measured: no runs with LoRA",
            "code: not measured: no runs with full + weight decay",
            "code: not measured: no runs with full + attention dropout",
        ],
        ["code: no runs with LoRA, whose rank the change's is compared with"],
        ["code: not measured: no runs with LoRA"],
        ["code: not measured: no runs with LoRA + HiddenKey", "code: not measured: no runs with LoRA"],
    ]


def test_methods_of_other_ranks_are_not_compared(tmp_path: Path) -> None:
    methods = {"lora": Method(kind="lora", rank=4), "mc": Method(kind="monteclora", rank=16)}
    result = evaluate(read_study([make_study(tmp_path, methods, seeds=(1,), budgets=(32,))]))
    assert result.answers[4][1].missing == ("code: not measured: no runs with MonteCLoRA and LoRA of the same rank",)


def test_the_correction_is_over_all_findings(papers_way: Result) -> None:
    ps = [f.measured.p for f in papers_way.findings]
    smallest = min(range(len(ps)), key=lambda index: ps[index])
    corrected = papers_way.corrected[id(papers_way.findings[smallest])]
    known = [p for p in ps if not math.isnan(p)]
    assert corrected == pytest.approx(len(known) * ps[smallest])


def test_reasons_are_the_numbers(papers_way: Result, other_way: Result, tmp_path: Path) -> None:
    learned = [f for f in of_claim(papers_way, 1)]
    said = reasons(papers_way, learned)
    assert said[0].startswith("the difference is 2")
    assert said[0].endswith("% of what full finetuning learned")
    assert (
        "the best learning rate of LoRA r4 and LoRA r16 is the highest that was tried: a better one may lie beyond"
        in said
    )
    (beside, *_) = [each for each in reasons(papers_way, of_claim(papers_way, 3)) if "without it" in each]
    assert beside.startswith("full + weight decay forgot \N{MINUS SIGN}0.0")
    assert "more than full finetuning without it, each at its best rate" in beside
    assert "of the parameters that full finetuning trains, 2.0 % with LoRA r4 and 8.0 % with LoRA r16" in said
    hidden_key = of_claim(papers_way, 6)
    assert reasons(papers_way, hidden_key)[-1].startswith(
        "the training loss (with dropout on, in nats per token) differs by r16 \N{MINUS SIGN}0.0"
    )
    assert "r16: the difference is on the other side, and its interval, too" in reasons(
        other_way, of_claim(other_way, 1)
    )
    assert "a spread over 3 learning rates and 3 seeds is a rough one" in reasons(other_way, of_claim(other_way, 5)[:1])
    (ratio, *_) = of_claim(other_way, 4)
    assert "the change has 16 % of the rank that it could have" in reasons(other_way, [ratio])
    make_study(tmp_path, {"full": Method(k=100), "lora_r64": Method(kind="lora", rank=64), "mc": Method(kind="monteclora", rank=64, diverges_at=(1e-3,))}, seeds=(1,), budgets=(16, 32))  # fmt: skip
    single = evaluate(read_study([tmp_path]))
    said = reasons(single, of_claim(single, 1))
    assert "r64: one seed, so how much the seed matters is not known and no verdict is given" in said
    limit = "r64: it cannot hold here: the matrices have rank 192 at most, so the ratio is 3 at most"
    assert limit in reasons(single, [f for f in of_claim(single, 4) if f.rank])
    assert "diverged runs count as the worst score, a lower bound of their spread: 1 of MonteCLoRA r64" in reasons(
        single, of_claim(single, 5)
    )


def test_an_undecided_difference_says_how_far_it_is_from_decided(tmp_path: Path) -> None:
    methods = {"full": Method(), "lora": Method(kind="lora", learned=0.495)}
    result = evaluate(read_study([make_study(tmp_path, methods, seed_noise=0.02)]))
    (finding,) = of_claim(result, 1)
    measured = finding.measured
    end = measured.low if measured.value > 0 else measured.high
    said = reasons(result, [finding])
    share = measured.value / (measured.value - end)
    assert f"r16: zero lies {100 * share:.0f} % of the way from the estimate to the end of its interval" in said
    assert verdicts([finding]) == "**undecided**"


def test_verdicts_that_hang_on_a_choice_are_named(papers_way: Result) -> None:
    found = next(f for f in of_claim(papers_way, 2) if f.what == EQUAL_LEARNING and f.rank == 4)
    assert {each.verdict for each in found.levels.values()} == {HOLDS}
    assert not any("level" in each for each in reasons(papers_way, [found]))
    wide, opposite = (
        replace(found.measured, boot_low=low, boot_high=high) for low, high in ((-1.0, 1.0), (-0.2, -0.1))
    )
    opposite = replace(opposite, t_low=-0.2, t_high=-0.1)
    depends = replace(found, levels={1.0: found.measured, 0.75: wide, 0.5: wide, 0.25: opposite})
    said = "r4: the verdict depends on the level: undecided at 75 % and 50 % of it and does not hold at 25 % of it"
    assert said in reasons(papers_way, [depends])
    few = "r4: decided by the interval, while p, which takes 3 seeds for all there is, is 0.060"
    assert few in reasons(papers_way, [replace(found, measured=replace(found.measured, p=0.06))])
    assert few not in reasons(papers_way, [replace(found, measured=replace(wide, p=0.06))])


def test_standard_errors_are_named_only_where_they_make_the_interval(papers_way: Result) -> None:
    found = of_claim(papers_way, 1)[0]
    by_t = replace(found.measured, boot_low=-0.1, boot_high=0.1, t_low=-0.2, t_high=0.2, degrees=2.0, value=0.05)
    text = "r4: with 3 seeds the interval is up to 4.3 standard errors to each side"
    assert text in reasons(papers_way, [replace(found, measured=by_t)])
    for measured, unit in ((replace(by_t, boot_high=0.3), found.unit), (by_t, "ratio")):
        assert not any(
            "standard errors" in each for each in reasons(papers_way, [replace(found, measured=measured, unit=unit)])
        )


def test_reasons_of_rates_that_could_not_be_chosen(tmp_path: Path) -> None:
    methods = {"full": Method(best=1e-3, diverges_at=(1e-3,)), "lora": Method(kind="lora")}
    result = evaluate(read_study([make_study(tmp_path, methods)]))
    said = reasons(result, of_claim(result, 1))
    assert (
        "the best learning rate of full finetuning is 0.0003; the next higher one, 0.001, diverged with 3 of 3 seeds"
        in said
    )
    assert not any("highest" in each for each in said)


def test_the_rate_that_learned_most_stands_beside_the_one_that_forgot_least(tmp_path: Path) -> None:
    make_study(tmp_path, {"full": Method(learned=0.6, forgotten=0.5, best=1e-3)}, rates=(1e-3,))
    make_study(tmp_path, {"full": Method(learned=0.55, forgotten=0.05, best=3e-4)}, rates=(3e-4,))
    make_study(tmp_path, {"lora": Method(kind="lora", learned=0.4, forgotten=0.1)}, rates=(3e-4, 1e-3))
    result = evaluate(read_study([tmp_path]))
    (equal,) = [f for f in of_claim(result, 2) if f.what == EQUAL_LEARNING]
    said = reasons(result, [equal])
    assert "r16: with each method at the rate that learned most the verdict would be: holds" in said
    assert any(each.startswith("the learning rate at equal learning of ") for each in said)


@pytest.mark.parametrize(("low", "is_alike"), [(-0.01, True), (0.001, False)])
def test_a_reference_that_is_full_finetuning_again_is_named(papers_way: Result, low: float, is_alike: bool) -> None:
    found = of_claim(papers_way, 3)[0]
    beyond = {"value": 0.002, "low": low, "high": 0.02}
    said = reasons(papers_way, [replace(found, details={**found.details, "beyond_full": beyond})])
    (sentence,) = [each for each in said if "without it" in each]
    assert sentence.endswith("so this is no evidence beside that against full finetuning") == is_alike


def test_verdicts_that_differ_by_rank_are_named(papers_way: Result) -> None:
    ranked = [f for f in of_claim(papers_way, 4) if f.rank]
    assert verdicts(ranked) == "**holds**: r4; **does not hold**: r16"
    variant = replace(ranked[0], method="MonteCLoRA r4 (noise scale 0.005)")
    assert verdicts([variant, ranked[1]]) == "**holds**: r4 (noise scale 0.005); **does not hold**: r16"


def test_json_has_every_number(papers_way: Result) -> None:
    content = as_json(papers_way)
    assert [claim["number"] for claim in content["claims"]] == [claim.number for claim in CLAIMS]
    assert sum(len(claim["findings"]) for claim in content["claims"]) == len(papers_way.findings)
    first = content["claims"][0]["findings"][0]
    assert first["measured"]["verdict"] == HOLDS
    assert [point["tokens"] for point in first["curve"]] == [4_000, 8_000, 16_000, 32_000]
    (panel,) = content["panels"]
    assert len(panel["cells"]) == 63
    assert [choice["arm"] for choice in panel["choices"]][:2] == ["full finetuning", "full + weight decay"]
    assert content["statuses"] == {"done": 63}
