"""Masks against plain loops, their shapes, rates and independence."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from monteclora.hidden_key.patterns import document_bounds, draw_features, draw_keys, draw_spans

CPU = torch.device("cpu")
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def positions(sizes: list[int]) -> Tensor:
    return torch.cat([torch.arange(size) for size in sizes]).unsqueeze(0)


def documents(sizes: list[int]) -> list[range]:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]


@given(SIZES)
def test_documents_begin_where_positions_do_not_go_on(sizes: list[int]) -> None:
    first, size = document_bounds(sum(sizes), positions(sizes), CPU)
    expected = [(document[0], len(document)) for document in documents(sizes) for _ in document]
    assert list(zip(first[0].tolist(), size[0].tolist(), strict=True)) == expected


@pytest.mark.parametrize("position_ids", [None, torch.arange(3).unsqueeze(0), torch.zeros(3, 1, 5)])
def test_without_fitting_positions_a_row_is_one_document(position_ids: Tensor | None) -> None:
    first, size = document_bounds(5, position_ids, CPU)
    assert first.tolist() == [[0] * 5]
    assert size.tolist() == [[5] * 5]


@given(SIZES, st.floats(0, 0.99), st.integers(0, 2**32 - 1))
def test_a_span_is_one_run_per_document_of_the_right_length(sizes: list[int], rate: float, seed: int) -> None:
    torch.manual_seed(seed)
    mask = draw_spans(2, 3, sum(sizes), rate, positions(sizes), CPU)
    assert mask.shape == (2, 3, sum(sizes))
    for row in mask.flatten(0, 1).tolist():
        for document in documents(sizes):
            dropped = [index for index in document if row[index]]
            assert math.floor(len(document) * rate - 1e-5) <= len(dropped) <= math.floor(len(document) * rate) + 1
            assert dropped == list(range(dropped[0], dropped[0] + len(dropped))) if dropped else True


def test_spans_have_the_rate_and_start_anywhere() -> None:
    torch.manual_seed(0)
    draws = 20_000
    sizes = [1, 4, 7]
    mask = draw_spans(draws, 1, 12, 0.3, positions(sizes), CPU)[:, 0].double()
    for document in documents(sizes):
        share = mask[:, document[0] : document[-1] + 1].mean(1)
        assert share.mean().item() == pytest.approx(0.3, abs=4 * share.std().item() / draws**0.5)
    # Of 7 tokens 2 are dropped with probability 0.9 and 3 with 0.1: 6 and 5 places.
    starts = mask[:, 5:].argmax(1).bincount() / draws
    expected = torch.tensor([0.9 / 6 + 0.1 / 5] * 5 + [0.9 / 6])
    torch.testing.assert_close(starts, expected, atol=4 * 0.5 / draws**0.5, rtol=0)


def test_documents_of_a_row_are_dropped_independently() -> None:
    torch.manual_seed(0)
    mask = draw_spans(20_000, 1, 2, 0.5, torch.zeros(1, 2, dtype=torch.long), CPU)[:, 0].double()
    assert torch.corrcoef(mask.T)[0, 1].abs().item() < 4 / 20_000**0.5


@pytest.mark.parametrize(
    ("pattern", "shape"), [("column", (40, 8, 1, 50)), ("span", (40, 8, 1, 50)), ("element", (40, 8, 30, 50))]
)
def test_keys_are_dropped_at_the_rate_in_the_right_shape(pattern: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    mask = draw_keys(pattern, 0.2, torch.empty(40, 8, 30, 4), 50)  # type: ignore[arg-type]
    assert mask.shape == shape
    assert mask.dtype == torch.bool
    assert mask.double().mean().item() == pytest.approx(0.2, abs=4 * 0.4 / (40 * 8 * 50) ** 0.5)
    # Samples and heads draw for themselves; a run of 10 in 50 keys has 41 places.
    assert len({tuple(row.tolist()) for row in mask.flatten(0, 1).flatten(1)}) > 30


@pytest.mark.parametrize(
    ("pattern", "shape"), [("column", (50, 1, 40)), ("span", (50, 30, 1)), ("element", (50, 30, 40))]
)
def test_features_are_dropped_at_the_rate_in_the_right_shape(pattern: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    mask = draw_features(pattern, 0.2, torch.empty(50, 30, 40))  # type: ignore[arg-type]
    assert mask.shape == shape
    assert mask.double().mean().item() == pytest.approx(0.2, abs=4 * 0.4 / mask.numel() ** 0.5)


def test_rate_0_drops_nothing() -> None:
    query = torch.empty(2, 4, 8, 3)
    for pattern in ("column", "span", "element"):
        assert not draw_keys(pattern, 0.0, query, 8).any()  # type: ignore[arg-type]


def test_the_generator_decides_the_draw() -> None:
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return draw_keys("column", 0.5, torch.empty(2, 4, 8, 3), 8)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
