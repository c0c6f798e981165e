"""Numbers that are written."""

from __future__ import annotations

import math

from evals.collect.rounding import rounded


def test_floats_are_rounded_and_what_json_lacks_is_null() -> None:
    value = {"a": [0.123456789, 123456789.0, math.nan, (math.inf, True, 12345678, None, "x")]}
    assert rounded(value) == {"a": [0.123457, 123457000.0, None, [None, True, 12345678, None, "x"]]}
    assert rounded(0.123456789, 2) == 0.12
