from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.packing.rows import IGNORED, whole_row

targets = st.lists(st.booleans(), min_size=1, max_size=9)


@given(st.lists(st.tuples(targets, st.booleans()), max_size=6), st.integers(0, 5))
def test_whole_examples_against_the_definition(shapes: list[tuple[list[bool], bool]], padding: int) -> None:
    examples = [
        (100 * number + np.arange(len(mask), dtype=np.int32), None if all_of_them else np.array(mask))
        for number, (mask, all_of_them) in enumerate(shapes, start=1)
    ]
    ids = [int(token) for tokens, _ in examples for token in tokens]
    row, filled = whole_row(examples, len(ids) + padding, padding_id=7)
    assert filled == len(ids)
    assert row.input_ids.tolist() == ids + [7] * padding
    labels: list[int] = []
    for tokens, mask in examples:
        learned = [int(token) if mask is None or mask[at] else IGNORED for at, token in enumerate(tokens)]
        labels += [*learned[1:], IGNORED]
    assert row.labels.tolist() == labels + [IGNORED] * padding
    assert row.position_ids.tolist() == [p for tokens, _ in examples for p in range(len(tokens))] + [*range(padding)]
    assert all(array.dtype == np.int64 for array in row)


def test_examples_that_do_not_fit_are_refused() -> None:
    with pytest.raises(AssertionError, match="do not fit"):
        whole_row([(np.arange(5, dtype=np.int32), None)], 4, 0)
