"""The curves of "LoRA Learns Less and Forgets Less" (Biderman et al., TMLR 2024, arXiv 2405.09673 v2), Llama-2-7B.

Learning is HumanEval pass@1 (0-shot, 50 samples, T 0.2, top-p 0.95) or GSM8K strict match (5-shot, greedy); forgetting is
the mean accuracy on HellaSwag, ARC-challenge and WinoGrande. Both are shares in [0, 1], higher is better. Single runs; the
paper gives no intervals. CPT is continued pretraining, IFT instruction finetuning; LoRA is on all linear layers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

SOURCE = "LoRA Learns Less and Forgets Less, arXiv 2405.09673, Llama-2-7B"
BASE = {"humaneval": 0.138, "gsm8k": 0.145, "forgetting": 0.671}
"""Llama-2-7B before training, read from the paper's figures."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One method of one experiment: its scores at several durations."""

    experiment: str
    tables: str
    task: str
    """The learning metric: `humaneval`, `gsm8k`, `mmlu` or `mt_bench` (a grade out of 10)."""
    method: str
    """`r16`, `r64`, `r256` (LoRA's rank) or `full`."""
    unit: str
    """Of the durations: `B tokens` or `epochs`."""
    durations: tuple[float, ...]
    learning: tuple[float, ...]
    forgetting: tuple[float, ...]


_METHODS = ("r16", "r64", "r256", "full")
_BILLIONS = (0.25, 0.5, 1, 2, 4, 8, 16, 20)
_EPOCHS = (1, 2, 4, 8, 16)
_TULU_EPOCHS = (2, 4, 6)

_CODE_CPT = """
.143/.645 .144/.642 .141/.645 .141/.642 .154/.644 .159/.640 .162/.638 .162/.635
.142/.646 .146/.644 .141/.646 .153/.646 .157/.639 .176/.634 .194/.626 .196/.626
.144/.644 .142/.645 .143/.643 .159/.639 .159/.636 .208/.630 .211/.618 .224/.617
.152/.625 .153/.624 .172/.625 .181/.616 .218/.599 .258/.583 .255/.551 .263/.545
"""
_MATH_CPT = """
.162/.640 .157/.641 .161/.646 .155/.641 .165/.643 .156/.641 .152/.636 .158/.637
.163/.640 .167/.640 .150/.638 .166/.637 .164/.643 .168/.634 .179/.634 .163/.627
.162/.638 .161/.638 .140/.637 .170/.634 .193/.633 .196/.620 .203/.620 .202/.616
.155/.634 .152/.634 .165/.640 .158/.630 .224/.629 .238/.619 .283/.613 .293/.618
"""
_CODE_IFT = """
.197/.653 .275/.648 .358/.652 .338/.646 .324/.609
.249/.652 .339/.651 .417/.632 .392/.580 .405/.510
.299/.655 .385/.659 .498/.631 .437/.552 .466/.517
.302/.595 .464/.579 .470/.512 .497/.446 .416/.414
"""
_MATH_IFT = """
.447/.628 .528/.617 .580/.616 .578/.616 .569/.596
.527/.617 .588/.609 .624/.608 .624/.586 .595/.568
.557/.613 .607/.607 .625/.599 .634/.584 .594/.567
.604/.598 .641/.599 .642/.590 .619/.572 .599/.559
"""
_TULU_GSM8K = """
.251/.650 .275/.657 .280/.657
.285/.649 .270/.655 .295/.647
.296/.653 .335/.649 .301/.629
.324/.660 .291/.652 .303/.621
"""
_TULU_MMLU = """
.491/.650 .502/.657 .504/.657
.503/.649 .509/.655 .504/.647
.502/.653 .496/.649 .492/.629
.507/.660 .504/.652 .502/.621
"""
_TULU_MT_BENCH = """
5.681/.650 5.997/.657 5.712/.657
5.597/.649 5.725/.655 5.944/.647
5.788/.653 5.834/.649 5.894/.629
5.825/.660 5.838/.652 5.862/.621
"""


def _curves(
    experiment: str, tables: str, task: str, unit: str, durations: tuple[float, ...], cells: str
) -> tuple[Curve, ...]:
    """Read a table: a line per method, a cell "learning/forgetting" per duration."""
    curves = []
    for method, line in zip(_METHODS, cells.split("\n")[1:-1], strict=True):
        pairs = [cell.split("/") for cell in line.split()]
        learning, forgetting = (tuple(float(number) for number in column) for column in zip(*pairs, strict=True))
        assert len(learning) == len(durations), (experiment, method)
        curves.append(
            Curve(
                experiment=experiment,
                tables=tables,
                task=task,
                method=method,
                unit=unit,
                durations=durations,
                learning=learning,
                forgetting=forgetting,
            )
        )
    return tuple(curves)


CURVES = (
    *_curves("Code CPT (StarCoder-Python)", "S1, S2", "humaneval", "B tokens", _BILLIONS, _CODE_CPT),
    *_curves("Math CPT (OpenWebMath)", "S3, S4", "gsm8k", "B tokens", _BILLIONS, _MATH_CPT),
    *_curves("Code IFT (Magicoder)", "S5, S6", "humaneval", "epochs", _EPOCHS, _CODE_IFT),
    *_curves("Math IFT (MetaMathQA)", "S7, S8", "gsm8k", "epochs", _EPOCHS, _MATH_IFT),
    *_curves("Chat IFT (Tulu-v2)", "Tulu-v2", "gsm8k", "epochs", _TULU_EPOCHS, _TULU_GSM8K),
    *_curves("Chat IFT (Tulu-v2)", "Tulu-v2", "mmlu", "epochs", _TULU_EPOCHS, _TULU_MMLU),
    *_curves("Chat IFT (Tulu-v2)", "Tulu-v2", "mt_bench", "epochs", _TULU_EPOCHS, _TULU_MT_BENCH),
)


def as_data() -> dict[str, Any]:
    """Everything published as JSON values."""
    return {"source": SOURCE, "base": BASE, "curves": [asdict(curve) for curve in CURVES]}
