from __future__ import annotations

import pytest

from tests.documentation.shape import outdated, shape

SHOWN = (
    " source   shard         documents     size    index   sha256",
    " ──────────────────────────────────────────────────",
    " code     train.jsonl         556   5.9 MB   9.1 kB   56b12dad53ea",
    "…",
    "",
    "3 damages",
)
PRINTED = """\
 source   shard         documents      size     index   sha256
 ━━━━━━━━━━━━━
 code     train.jsonl       1,204   61.0 kB     311 B   0a1b2c3d4e5f
1 damage
"""


def test_figures_may_differ() -> None:
    assert outdated(SHOWN, PRINTED, ()) == []


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [("sha256", "crc32", SHOWN[0]), ("code ", "prose", SHOWN[2]), ("1 damage", "healthy", SHOWN[5])],
)
def test_words_may_not(old: str, new: str, line: str) -> None:
    assert outdated(SHOWN, PRINTED.replace(old, new), ()) == [line]


def test_data_may_differ() -> None:
    assert outdated(SHOWN, PRINTED.replace("code ", "prose"), (r"^ code ",)) == []


@pytest.mark.parametrize(
    ("one", "another"),
    [
        ("step 310/3000  loss 2.481  1,382 tokens/s  19:50 left", "step 9/20  loss 12.4  7 tokens/s  0:01 left"),
        ("lr5e-5-seed17", "lr2e-4-seed18"),
        ("open 57 s ago", "open 195 ms ago"),
        ("took 11 min", "took 3.5 h"),
        ("274 rows of 6 legs", "1 row of 1 leg"),
        ("learned +0.593 [+0.552, +0.634]", "learned -0.1 [-0.2, +0.03]"),
        ("65 –  91 │█▍       62   0.8 %", "5 –  9 │██████▎   1,062  10 %"),
    ],
)
def test_what_counts_as_equal(one: str, another: str) -> None:
    assert shape(one) == shape(another)


@pytest.mark.parametrize(("one", "another"), [("3 steps", "3 tokens"), ("a 5 MB file", "a 5 s file"), ("up", "down")])
def test_what_does_not(one: str, another: str) -> None:
    assert shape(one) != shape(another)
