from __future__ import annotations

import pytest

from launch.plan.units import binary, decimal, duration, gpu_hours


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (205_000, "205 kB"), (6.49e6, "6.5 MB"), (13.48e9, "13.5 GB"), (552e9, "552 GB"), (4.3e12, "4.3 TB")],
)  # fmt: skip
def test_decimal(size: float, text: str) -> None:
    assert decimal(size) == text


@pytest.mark.parametrize(("size", "text"), [(56 * 2**20, "56 MiB"), (2**30, "1.0 GiB"), (69.34 * 2**30, "69.3 GiB")])
def test_binary(size: float, text: str) -> None:
    assert binary(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.036, "36 ms"), (40, "40 s"), (99, "99 s"), (720, "12 min"), (3600, "1.0 h"), (32_760, "9.1 h"), (3_643_200, "1,012 h")],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("hours", "text"), [(0.05, "less than 0.1 GPU-hours"), (0.3, "0.3 GPU-hours"), (8100, "8,100 GPU-hours")]
)
def test_gpu_hours(hours: float, text: str) -> None:
    assert gpu_hours(hours) == text
