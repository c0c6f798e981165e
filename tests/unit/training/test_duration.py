from __future__ import annotations

import pytest

from training.duration import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10min", 600), ("2h", 7200), ("1.5 days", 129_600), (" 1 minute ", 60), ("0s", 0), ("1d", 86_400), ("3 hours", 10_800)],
)  # fmt: skip
def test_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "min", "-5min", "10 m", "1h30", "ten hours", "1e3s"])
def test_what_is_no_time_is_told_what_is(text: str) -> None:
    with pytest.raises(ValueError, match=r'is no time; write a number and its unit, such as "90s"'):
        parse_duration(text)
