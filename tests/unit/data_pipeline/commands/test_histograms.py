from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.commands.histograms import draw_bars, length_bins, save_picture


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 100_000), max_size=200))
def test_every_length_is_in_one_bin(lengths: list[int]) -> None:
    bins = length_bins(np.array(lengths, dtype=np.int32))
    for one in bins:
        inside = [length for length in lengths if one.low <= length <= one.high]
        assert one.documents == len(inside)
        assert one.tokens == sum(inside)
    assert sum(one.documents for one in bins) == sum(length > 0 for length in lengths)
    assert all(a.high + 1 == b.low for a, b in pairwise(bins))
    # No empty ones at the ends.
    assert not bins or (bins[0].documents and bins[-1].documents)


def test_bins_grow_by_two_or_its_root() -> None:
    wide = length_bins(np.array([1, 5000], dtype=np.int32))
    assert [one.high for one in wide] == [2**i for i in range(14)]
    narrow = length_bins(np.array([100, 900], dtype=np.int32))
    assert [one.high for one in narrow] == [128, 181, 256, 362, 512, 724, 1024]


def test_bars() -> None:
    lengths = np.array([8] * 400 + [100] * 100 + [3000], dtype=np.int32)
    for width in (60, 80, 140):
        lines = draw_bars(length_bins(lengths), width=width, seq_len=512)
        assert max(map(len, lines)) <= width
        assert len({line.index("│") for line in lines if "│" in line}) == 1
    lines = draw_bars(length_bins(lengths), width=80, seq_len=512)
    assert lines[1].split("│")[0].split() == ["5", "–", "8"]
    assert lines[1].split()[-3:] == ["%", "19.8", "%"]
    full, quarter = lines[1].count("█"), lines[5].count("█")
    assert abs(quarter - full / 4) <= 1
    # The one longest document is seen, however small its share.
    assert "▏" in lines[-1]
    assert "seq_len 512" in lines[-4]
    assert lines[-2].split("│")[0].split() == ["1,025", "–", "2,048"]


def test_nothing_to_draw() -> None:
    assert draw_bars(length_bins(np.zeros(3, dtype=np.int32)), width=80, seq_len=8) == []


def test_picture_of_two_sources_one_without_text(tmp_path: Path) -> None:
    path = tmp_path / "lengths.png"
    lengths = {"a": np.array([3, 40, 40, 500], dtype=np.int32), "b": np.zeros(2, dtype=np.int32)}
    save_picture(path, lengths, seq_len=128, is_estimate=True)
    assert path.read_bytes().startswith(b"\x89PNG")
