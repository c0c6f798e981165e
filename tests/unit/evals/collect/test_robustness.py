"""Comparisons of spreads: which pairs, and the numbers of one by hand."""

from __future__ import annotations

from typing import Any

import pytest

from evals.collect.page_robustness import robustness
from evals.collect.robustness import reductions


def run(method: str, lr: float, learned: float, rank: int | None = 16, seed: int = 1, **fields: Any) -> dict[str, Any]:
    adapter = {"full finetuning": "none", "LoRA": "lora", "MonteCLoRA": "monteclora"}[method]
    effect = {"value": learned, "unit": "accuracy"}
    final = {"learned": effect, "forgotten": None, "learning_score": 0.2 + learned, "forgetting_average": None,
             "calibration": {}}  # fmt: skip
    return {"id": f"{method}-{rank}-{lr}-{seed}", "method": method, "adapter": adapter, "rank": rank, "lr": lr, "seed": seed,
            "batch_rows": 8, "base": "models/b", "base_fingerprint": "b", "status": "done", "is_diverged": False,
            "is_continuation": False, "final": final} | fields  # fmt: skip


def grid(method: str, values: list[list[float]], **fields: Any) -> list[dict[str, Any]]:
    """A row of seeds for each learning rate."""
    return [
        run(method, 10.0**-i, value, seed=seed, **fields)
        for i, row in enumerate(values, 3)
        for seed, value in enumerate(row)
    ]


LORA = grid("LoRA", [[0.1, 0.3], [0.6, 0.6], [0.4, 0.4]])
MONTECLORA = grid("MonteCLoRA", [[0.4, 0.4], [0.5, 0.5], [0.5, 0.5]])


def test_the_spread_over_settings_of_a_pair() -> None:
    found = {entry["metric"]: entry for entry in reductions([*MONTECLORA, *LORA])}
    assert set(found) == {"learned", "learning_score"}
    entry = found["learned"]
    ours, theirs = entry["method"], entry["reference"]
    assert (ours["name"], theirs["name"], entry["rank"]) == ("MonteCLoRA", "LoRA", 16)
    assert [ours[key] for key in ("best", "median", "worst", "range")] == pytest.approx([0.5, 0.5, 0.4, 0.1])
    assert [theirs[key] for key in ("best", "median", "worst", "range")] == pytest.approx([0.6, 0.4, 0.2, 0.4])
    assert (ours["seed_deviation"], theirs["seed_deviation"]) == pytest.approx((0, (0.02 / 3) ** 0.5))
    assert entry["range"]["relative"] == pytest.approx(0.75)
    assert entry["range"]["relative_low"] <= 0.75 <= entry["range"]["relative_high"]
    assert entry["std"]["configurations"] == (3, 3)


def test_pairs_are_of_a_rank_and_a_base_and_full_finetuning_is_of_every_rank() -> None:
    runs = [
        *LORA,
        *MONTECLORA,
        *grid("LoRA", [[0.1], [0.2]], rank=64),
        *grid("full finetuning", [[0.1], [0.2]], rank=None),
        *grid("MonteCLoRA", [[0.1], [0.2]], rank=64, base_fingerprint="other"),
    ]
    found = [
        (e["reference"]["name"], e["method"]["name"], e["rank"]) for e in reductions(runs) if e["metric"] == "learned"
    ]
    assert sorted(found) == [
        ("LoRA", "MonteCLoRA", 16),
        ("full finetuning", "LoRA", 16),
        ("full finetuning", "LoRA", 64),
        ("full finetuning", "MonteCLoRA", 16),
    ]


def test_one_setting_has_no_spread_and_a_diverged_run_no_value() -> None:
    assert reductions([*LORA[:2], *MONTECLORA]) == []
    broken = [each | {"is_diverged": True, "status": "failed"} for each in LORA[4:]]
    (entry, _) = reductions([*LORA[:4], *broken, *MONTECLORA])
    assert (entry["reference"]["n"], entry["reference"]["diverged"]) == (2, 1)
    assert entry["range"]["diverged"] == (0, 2)


def test_the_table_of_the_page() -> None:
    text = robustness(reductions([*MONTECLORA, *LORA])).replace(' class="text"', "")
    ours, theirs = text[text.index("<td>learned (points)") :].split("<tr>")[:2]
    assert ours.startswith("<td>learned (points)</td><td>16</td><td>MonteCLoRA</td><td>10.0</td><td>75 % (")
    assert ours.endswith("<td>+50.0</td><td>+50.0</td><td>0.0</td><td>3</td></tr>")
    assert theirs.startswith(
        "<td></td><td></td><td>LoRA</td><td>40.0</td><td></td><td></td><td>+60.0</td><td>+40.0</td>"
    )
    assert "<td>70.0</td><td>70.0</td>" in text  # a score has no sign
    assert "Bases:" not in text
    evil = [each | {"method": "<b>", "adapter": "monteclora", "base_fingerprint": "<c>"} for each in MONTECLORA]
    more = robustness(reductions([*MONTECLORA, *LORA, *evil, *(each | {"base_fingerprint": "<c>"} for each in LORA)]))
    assert "<b>" not in more
    assert "Bases: 1: &lt;c&gt;; 2: b." in more
    assert robustness([]) == ""
