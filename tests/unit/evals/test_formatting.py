"""Numbers as text."""

from __future__ import annotations

import pytest

from evals import formatting as fmt


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0"), (999, "999"), (1_000, "1 k"), (2_634_816, "2.63 M"), (6.7e9, "6.7 B"), (2e12, "2 T")],
)
def test_count(value: float | None, text: str) -> None:
    assert fmt.count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (3.4, "3 s"), (119.4, "119 s"), (150, "2.5 min"), (9000, "2.5 h")]
)
def test_duration(seconds: float | None, text: str) -> None:
    assert fmt.duration(seconds) == text


def test_effects_and_scores() -> None:
    bits = {"value": -0.1234, "stderr": 0.01, "unit": "bits per byte"}
    points = {"value": 0.05, "stderr": 0.01, "unit": "accuracy"}
    assert fmt.effect(bits) == "\N{MINUS SIGN}0.123 ± 0.020"
    assert fmt.effect(points) == "+5.0 ± 2.0 points"
    assert fmt.effect(bits | {"stderr": None}) == "\N{MINUS SIGN}0.123"
    assert fmt.effect(None) == "–"
    assert fmt.score({"score": 1.23456, "metric": "bits_per_byte"}) == "1.235"
    assert fmt.score({"score": 0.5, "metric": "accuracy"}) == "50.0 %"
    assert fmt.score({"score": None}) == fmt.score(None) == "–"
    assert fmt.percent(0.1234) == "12.3 %"
    assert fmt.percent(None) == "–"
    assert (fmt.nats(0.12345), fmt.nats(None)) == ("0.123", "–")
    assert fmt.trainable({"trainable_parameters": 10, "total_parameters": 40}) == "10 (25 %)"
    assert fmt.trainable({"trainable_parameters": 10}) == "10"
    assert fmt.trainable({}) == "–"
