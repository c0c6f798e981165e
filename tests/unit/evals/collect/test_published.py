"""The published curves against the paper's tables, typed a second time: by duration, from full finetuning down to rank 16."""

from __future__ import annotations

import json

import pytest

from evals.collect.published import BASE, CURVES, as_data

# duration: learning of (full, r256, r64, r16), forgetting of the same; in thousandths.
CODE_CPT = {
    0.25: ((152, 144, 142, 143), (625, 644, 646, 645)),
    0.5: ((153, 142, 146, 144), (624, 645, 644, 642)),
    1: ((172, 143, 141, 141), (625, 643, 646, 645)),
    2: ((181, 159, 153, 141), (616, 639, 646, 642)),
    4: ((218, 159, 157, 154), (599, 636, 639, 644)),
    8: ((258, 208, 176, 159), (583, 630, 634, 640)),
    16: ((255, 211, 194, 162), (551, 618, 626, 638)),
    20: ((263, 224, 196, 162), (545, 617, 626, 635)),
}
MATH_CPT = {
    0.25: ((155, 162, 163, 162), (634, 638, 640, 640)),
    0.5: ((152, 161, 167, 157), (634, 638, 640, 641)),
    1: ((165, 140, 150, 161), (640, 637, 638, 646)),
    2: ((158, 170, 166, 155), (630, 634, 637, 641)),
    4: ((224, 193, 164, 165), (629, 633, 643, 643)),
    8: ((238, 196, 168, 156), (619, 620, 634, 641)),
    16: ((283, 203, 179, 152), (613, 620, 634, 636)),
    20: ((293, 202, 163, 158), (618, 616, 627, 637)),
}
CODE_IFT = {
    1: ((302, 299, 249, 197), (595, 655, 652, 653)),
    2: ((464, 385, 339, 275), (579, 659, 651, 648)),
    4: ((470, 498, 417, 358), (512, 631, 632, 652)),
    8: ((497, 437, 392, 338), (446, 552, 580, 646)),
    16: ((416, 466, 405, 324), (414, 517, 510, 609)),
}
MATH_IFT = {
    1: ((604, 557, 527, 447), (598, 613, 617, 628)),
    2: ((641, 607, 588, 528), (599, 607, 609, 617)),
    4: ((642, 625, 624, 580), (590, 599, 608, 616)),
    8: ((619, 634, 624, 578), (572, 584, 586, 616)),
    16: ((599, 594, 595, 569), (559, 567, 568, 596)),
}
TULU_FORGETTING = {2: (660, 653, 649, 650), 4: (652, 649, 655, 657), 6: (621, 629, 647, 657)}
TULU = {
    "gsm8k": {2: (324, 296, 285, 251), 4: (291, 335, 270, 275), 6: (303, 301, 295, 280)},
    "mmlu": {2: (507, 502, 503, 491), 4: (504, 496, 509, 502), 6: (502, 492, 504, 504)},
    "mt_bench": {2: (5825, 5788, 5597, 5681), 4: (5838, 5834, 5725, 5997), 6: (5862, 5894, 5944, 5712)},
}
TABLES = {
    ("Code CPT (StarCoder-Python)", "humaneval"): CODE_CPT,
    ("Math CPT (OpenWebMath)", "gsm8k"): MATH_CPT,
    ("Code IFT (Magicoder)", "humaneval"): CODE_IFT,
    ("Math IFT (MetaMathQA)", "gsm8k"): MATH_IFT,
} | {
    ("Chat IFT (Tulu-v2)", task): {d: (row, TULU_FORGETTING[d]) for d, row in rows.items()}
    for task, rows in TULU.items()
}


@pytest.mark.parametrize(("experiment", "task"), TABLES)
def test_every_number_is_the_papers(experiment: str, task: str) -> None:
    curves = {c.method: c for c in CURVES if (c.experiment, c.task) == (experiment, task)}
    assert list(curves) == ["r16", "r64", "r256", "full"]
    table = TABLES[experiment, task]
    for curve in curves.values():
        assert curve.durations == tuple(table)
        assert curve.unit == ("B tokens" if "CPT" in experiment else "epochs")
    found = {
        duration: tuple(
            tuple(round(1000 * getattr(curves[m], part)[i]) for m in ("full", "r256", "r64", "r16"))
            for part in ("learning", "forgetting")
        )
        for i, duration in enumerate(table)
    }
    assert found == table


def test_there_is_nothing_else() -> None:
    assert {(c.experiment, c.task) for c in CURVES} == set(TABLES)
    assert len(CURVES) == 28
    assert BASE == {"humaneval": 0.138, "gsm8k": 0.145, "forgetting": 0.671}


def test_data_is_json() -> None:
    data = as_data()
    assert json.loads(json.dumps(data))["curves"][3]["learning"][-1] == 0.263
    assert "2405.09673" in data["source"]
