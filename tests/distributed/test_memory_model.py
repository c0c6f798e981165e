"""Memory and bytes on the wire of real steps against what was predicted, on two ranks."""

from __future__ import annotations

import pytest

from benchmarks.memory_model import compare

pytestmark = pytest.mark.dist


def test_predictions_of_small_models() -> None:
    wanted = [
        {"size": "tiny", "method": method, "placement": placement, "recomputed": recomputed}
        for method, placement, recomputed in [
            ("full", "replicated", "off"), ("full", "zero3", "full"), ("lora", "replicated", "full"),
            ("monteclora", "zero3", "off"),
        ]
    ]  # fmt: skip
    for case in compare(wanted, timeout=300):
        for what in ("peak", "held", "wire"):
            assert case[f"predicted_{what}"] == pytest.approx(case[what], rel=0.1), (what, case)
