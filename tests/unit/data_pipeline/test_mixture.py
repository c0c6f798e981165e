from __future__ import annotations

from data_pipeline.mixture import integer_inverses


def test_weights_are_taken_as_written() -> None:
    assert integer_inverses([0.1, 0.3]) == [30, 10]
    assert integer_inverses([1, 2.5, 1e-3]) == [5, 2, 5000]
