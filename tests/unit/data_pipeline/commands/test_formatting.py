from __future__ import annotations

from data_pipeline.commands.formatting import format_amounts, format_bytes, format_pace, format_share, format_time


def test_sizes_and_times() -> None:
    assert format_bytes(812) == "812 B"
    assert format_bytes(1_510_000) == "1.5 MB"
    assert format_bytes(2e10) == "20.0 GB"
    assert format_time(59.6) == "1:00"
    assert format_time(3723) == "1:02:03"


def test_shares() -> None:
    assert [format_share(share) for share in (0, 0.0001, 0.0005, 0.5, 0.99951, 0.999999, 1)] == [
        "0.0 %",
        "< 0.1 %",
        "0.1 %",
        "50.0 %",
        "99.95 %",
        "99.99 %",
        "100.0 %",
    ]


def test_amounts_and_paces() -> None:
    assert format_amounts(1500, 2000, "") == "1,500/2,000"
    assert format_amounts(1, 2, "rows") == "1/2 rows"
    assert format_amounts(1_500_000_000, 20_000_000_000, "bytes") == "1.5/20.0 GB"
    assert format_amounts(500, 2000, "bytes") == "0.5/2.0 kB"
    assert format_pace(0, 5, 10.0, "") == ""
    assert format_pace(5, 5, 0.1, "") == ""
    assert format_pace(3000, 6000, 2.0, "documents") == "1,500/s, 0:04 left"
    assert format_pace(3_000_000, 0, 2.0, "bytes") == "1.5 MB/s, took 0:02"
