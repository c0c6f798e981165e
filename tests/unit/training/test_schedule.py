from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from training.config import OptimConfig
from training.schedule import lr_factor


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.0), (500, 0.5), (999, 0.999), (1000, 1.0), (10_000, 1.0), (20_345, 1.0), (22_888, 0.5), (25_431, 0.0),
    ],
)  # fmt: skip
def test_the_trapezoid_of_a_published_run(step: int, factor: float) -> None:
    # 20B tokens in 25,431 steps, 1,000 of warm-up and the last fifth (5,086) of cooldown.
    config = OptimConfig(schedule="trapezoid", warmup_steps=1000, cooldown_steps=5086)
    assert lr_factor(step, 25_431, config) == pytest.approx(factor, abs=1e-12)


def test_the_trapezoids_last_fraction() -> None:
    config = OptimConfig(schedule="trapezoid", cooldown_steps=10, final_lr_fraction=0.2)
    assert [lr_factor(step, 100, config) for step in (0, 89, 90)] == [1.0, 1.0, 1.0]
    assert lr_factor(95, 100, config) == pytest.approx(0.6)
    assert lr_factor(100, 100, config) == pytest.approx(0.2)


def torch_rates(scheduler_of: type, steps: int, **options: float) -> list[float]:
    """What a scheduler of torch gives for a peak of 1, from step 0 to `steps`."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = scheduler_of(optimizer, **options)
    rates = [scheduler.get_last_lr()[0]]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    return rates


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_cosine_is_torchs(final: float) -> None:
    expected = torch_rates(torch.optim.lr_scheduler.CosineAnnealingLR, 40, T_max=40, eta_min=final)
    config = OptimConfig(schedule="cosine", final_lr_fraction=final)
    assert [lr_factor(step, 40, config) for step in range(41)] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("final", [0.1, 0.5])
def test_linear_is_torchs(final: float) -> None:
    options = {"start_factor": 1.0, "end_factor": final, "total_iters": 40}
    expected = torch_rates(torch.optim.lr_scheduler.LinearLR, 40, **options)
    config = OptimConfig(schedule="linear", final_lr_fraction=final)
    assert [lr_factor(step, 40, config) for step in range(41)] == pytest.approx(expected, abs=1e-9)


def test_constant() -> None:
    config = OptimConfig(schedule="constant", warmup_steps=4, final_lr_fraction=0.3)
    assert [lr_factor(step, 8, config) for step in range(8)] == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_after_a_warmup_the_shape_begins_at_the_peak(schedule: str) -> None:
    config = OptimConfig(schedule=schedule, warmup_steps=10)  # type: ignore[arg-type]
    assert lr_factor(10, 30, config) == 1.0
    assert lr_factor(20, 30, config) == pytest.approx(0.5)
    assert lr_factor(30, 30, config) == pytest.approx(0.0, abs=1e-12)


def test_the_inverse_square_root_and_its_cooldown() -> None:
    config = OptimConfig(
        schedule="inverse_sqrt", warmup_steps=10, inverse_sqrt_steps=25, cooldown_steps=20, final_lr_fraction=0.1
    )
    # 75 steps after warm-up: sqrt(25 / 100); the cooldown starts after 130 of 150 steps, at sqrt(25 / 145).
    assert [lr_factor(step, 150, config) for step in (0, 5, 10)] == [0.0, 0.5, 1.0]
    assert lr_factor(85, 150, config) == pytest.approx(0.5)
    at_start = math.sqrt(25 / 145)
    assert lr_factor(130, 150, config) == pytest.approx(at_start)
    assert lr_factor(140, 150, config) == pytest.approx((at_start + 0.1) / 2)
    assert lr_factor(150, 150, config) == pytest.approx(0.1)


def test_an_inverse_square_root_without_a_cooldown_only_decays() -> None:
    config = OptimConfig(schedule="inverse_sqrt", inverse_sqrt_steps=1)
    assert [lr_factor(step, 8, config) for step in (0, 3, 8)] == pytest.approx([1.0, 0.5, 1 / 3])


def closed_form(schedule: str, at: float, of: float, cooldown: float, scale: float, final: float) -> float:
    """The factor `at` of `of` steps after warm-up, from the definitions, of every schedule as one curve of the time."""
    falling = np.interp(at, [0, of], [1, final])
    flat_end = of - cooldown
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return float(falling)
    if schedule == "cosine":
        return float(final + (1 - final) * np.cos(np.pi * at / of / 2) ** 2)
    reached = (1 + flat_end / scale) ** -0.5 if schedule == "inverse_sqrt" else 1.0
    if at > flat_end:
        return float(np.interp(at, [flat_end, of], [reached, final]))
    return float((1 + at / scale) ** -0.5) if schedule == "inverse_sqrt" else 1.0


@example(schedule="inverse_sqrt", warmup=0, cooldown=13, flat=1, scale=1, final=0.0)
@given(
    schedule=st.sampled_from(["constant", "linear", "cosine", "trapezoid", "inverse_sqrt"]),
    warmup=st.integers(0, 50), cooldown=st.integers(1, 50), flat=st.integers(0, 50), scale=st.integers(1, 300),
    final=st.floats(0, 1),
)  # fmt: skip
def test_every_schedule_rises_to_the_peak_then_goes_to_the_last_fraction(
    schedule: str, warmup: int, cooldown: int, flat: int, scale: int, final: float
) -> None:
    steps = warmup + cooldown + flat
    has_cooldown = schedule in ("trapezoid", "inverse_sqrt")
    config = OptimConfig(
        schedule=schedule, warmup_steps=warmup, final_lr_fraction=final,  # type: ignore[arg-type]
        cooldown_steps=cooldown if has_cooldown else 0, inverse_sqrt_steps=scale,
    )  # fmt: skip
    assert list(config.problems()) == []
    factors = [lr_factor(step, steps, config) for step in range(steps + 1)]
    assert all(0 <= factor <= 1 + 1e-12 for factor in factors)
    assert factors[:warmup] == pytest.approx([step / warmup for step in range(warmup)])
    assert factors[warmup:] == pytest.approx(
        [closed_form(schedule, step, cooldown + flat, cooldown, scale, final) for step in range(cooldown + flat + 1)],
        abs=1e-12,
    )
    assert factors[warmup] == pytest.approx(1.0)
    assert factors[-1] == pytest.approx(1.0 if schedule == "constant" else final, abs=1e-12)
    # No jumps: a step changes the factor by what the steepest part of the curve allows, which is that of the cosine.
    steepest = math.pi / 2 / (cooldown if has_cooldown else cooldown + flat)
    decay = 1 / (2 * scale) if schedule == "inverse_sqrt" else 0.0
    assert all(abs(b - a) <= max(steepest, decay) + 1e-12 for a, b in pairwise(factors[warmup:]))
    falls = schedule != "inverse_sqrt" or final <= lr_factor(steps - cooldown, steps, config)
    assert not falls or all(a >= b - 1e-12 for a, b in pairwise(factors[warmup:]))
