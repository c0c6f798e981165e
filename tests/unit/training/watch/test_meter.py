from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training.config import Config
from training.costs.shape import Shape
from training.progress import Progress
from training.recipe import load_config
from training.watch import meter as meter_module
from training.watch.meter import Meter, peak_memory_bytes
from training.watch.phases import Phases

SHAPE = Shape(hidden=8, intermediate=12, layers=2, heads=2, kv_heads=2, head_dim=4, vocab=40, is_tied=False)
LINEAR = 2 * (4 * 8 * 8 + 3 * 8 * 12)
"""Elements of the linear layers inside the decoder."""
HEAD = 8 * 40
STEPS = [dict(tokens=1000, targets=600, pairs=50_000), dict(tokens=1000, targets=900, pairs=30_000)]
FULL = 6 * LINEAR * 2000 + 6 * HEAD * 1500 + 12 * 2 * 8 * 80_000
"""FLOPs of STEPS: 6 per token and weight, of the head at targets only, and 12 per pair, layer and channel in attention."""


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeTraffic:
    """Collectives that send and wait as a test says."""

    def __init__(self) -> None:
        self.bytes = self.seconds = 0.0

    def start(self) -> None:
        self.bytes, self.seconds = 0.0, 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(meter_module.time, "perf_counter", found)
    return found


@pytest.fixture
def make(recipe: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Meter]:
    monkeypatch.setattr(meter_module, "Traffic", FakeTraffic)

    def build(*overrides: str, gpu: str | None = None, world_size: int = 4, **values: Any) -> Meter:
        config: Config = load_config(recipe, list(overrides), world_size=world_size)
        if gpu is not None:
            monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu)
            monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 77)
        device = torch.device("cpu" if gpu is None else "cuda")
        phases = Phases(torch.device("cpu"))
        return Meter(config, SHAPE, phases, device=device, world_size=world_size, **values)

    return build


def take(meter: Meter, clock: Clock) -> None:
    """Two steps of 2 s: 0.5 s of waiting for data, 0.5 forward, 0.75 backward, 0.125 optimizer, 0.125 of something else."""
    for counts in STEPS:
        # Between steps: an evaluation, a checkpoint.
        clock.now += 1000
        meter._traffic.bytes += 12345
        meter.begin_step()
        clock.now += 0.625
        for name, seconds in {"forward": 0.5, "backward": 0.75, "optimizer": 0.125}.items():
            with meter._phases(name):
                clock.now += seconds
        meter._traffic.bytes += 600
        meter._traffic.seconds += 0.25
        assert meter.end_step(**counts, data_seconds=0.5) == 2.0


PROGRESS = Progress(step=8, tokens_seen=4096, data_hash="ab", skipped_steps=3)
RESULT = SimpleNamespace(loss=2.5, lr=1e-3, grad_norm=0.5, penalty=None, compensation=None)


def line(meter: Meter) -> dict[str, Any]:
    return meter.line(PROGRESS, RESULT, stall_seconds=1.5)


class TestLine:
    def test_every_number(self, make: Callable[..., Meter], clock: Clock) -> None:
        meter = make()
        take(meter, clock)
        found = line(meter)
        assert found.pop("peak_memory_bytes") == peak_memory_bytes(torch.device("cpu"))
        assert found == {
            "step": 8, "tokens_seen": 4096, "loss": 2.5, "lr": 1e-3, "grad_norm": 0.5, "penalty": None,
            "compensation": None, "skipped_steps": 3, "data_hash": "ab", "stall_seconds": 1.5,
            "tokens_per_second": 500.0, "target_tokens_per_second": 375.0, "mfu": None,
            "flops": FULL / 2, "hardware_flops": FULL / 2, "step_seconds": 4.0, "data_seconds": 1.0,
            "forward_seconds": 1.0, "backward_seconds": 1.5, "optimizer_seconds": 0.25, "other_seconds": 0.25,
            "communication_seconds": 0.5, "communication_bytes": 600.0,
        }  # fmt: skip
        json.dumps(found, allow_nan=False)

    def test_a_reset_starts_anew(self, make: Callable[..., Meter], clock: Clock) -> None:
        meter = make()
        take(meter, clock)
        first = line(meter)
        meter.reset()
        assert (meter.tokens_per_second, meter.flops, meter.mfu) == (0, 0, None)
        take(meter, clock)
        assert line(meter) == first

    def test_a_line_without_a_step(self, make: Callable[..., Meter]) -> None:
        found = line(make(gpu="NVIDIA H100"))
        assert (found["tokens_per_second"], found["target_tokens_per_second"], found["mfu"]) == (0, 0, None)
        assert (found["flops"], found["communication_bytes"], found["forward_seconds"]) == (0, 0, 0)

    def test_a_gpu_can_be_a_little_slower_than_the_host_saw(self, make: Callable[..., Meter], clock: Clock) -> None:
        meter = make()
        meter.begin_step()
        with meter._phases("forward"):
            clock.now += 2
        clock.now -= 1
        meter.end_step(**STEPS[0], data_seconds=0.0)
        assert line(meter)["other_seconds"] == 0


class TestUtilisation:
    def test_of_a_gpu_that_is_known(self, make: Callable[..., Meter], clock: Clock) -> None:
        meter = make(gpu="NVIDIA H100 80GB HBM3")
        take(meter, clock)
        assert meter.mfu == pytest.approx(FULL / 4.0 / (4 * 989e12))
        found = line(meter)
        assert found["mfu"] == meter.mfu
        # The host doesn't wait for collectives there, so their time isn't known.
        assert (found["communication_seconds"], found["communication_bytes"]) == (None, 600.0)
        assert found["peak_memory_bytes"] == 77

    def test_of_a_gpu_that_is_not(self, make: Callable[..., Meter], clock: Clock) -> None:
        meter = make(gpu="NVIDIA GeForce GTX 1080")
        take(meter, clock)
        assert meter.mfu is None
        assert line(meter)["flops"] == FULL / 2


class TestFlops:
    def test_frozen_weights_have_no_gradient_and_recomputing_is_counted_apart(
        self, make: Callable[..., Meter], clock: Clock
    ) -> None:
        meter = make("--adapter.kind", "lora", "--adapter.rank", "2", recomputed_layers=1)
        take(meter, clock)
        adapter = 2 * 2 * (4 * (8 + 8) + 3 * (8 + 12))
        # The first layer's input has no gradient: nothing before its q, k and v trains.
        unneeded = 3 * (2 * 8 * 8 + 2 * 8 * 2) * 2000
        expected = (4 * LINEAR + 6 * adapter) * 2000 + 4 * HEAD * 1500 + 12 * 2 * 8 * 80_000 - unneeded
        assert line(meter)["flops"] == expected / 2
        again = (2 * LINEAR + 2 * adapter) * 2000 + 4 * 2 * 8 * 80_000
        assert line(meter)["hardware_flops"] == (expected + again / 2) / 2

    @pytest.mark.parametrize(("branches", "forwards", "backwards"), [("false", 2, 1), ("true", 2, 2)])
    def test_two_passes_of_hidden_key(
        self, make: Callable[..., Meter], clock: Clock, branches: str, forwards: int, backwards: int
    ) -> None:
        meter = make("--adapter.kind", "lora", "--hidden_key.enabled", "true", "--hidden_key.both_branches", branches)
        single = make("--adapter.kind", "lora")
        for each in (meter, single):
            take(each, clock)
        forward = forward_flops(16)
        assert meter.flops == pytest.approx(forwards * forward + backwards * (single.flops - forward))


def forward_flops(rank: int) -> float:
    adapter = 2 * rank * (4 * (8 + 8) + 3 * (8 + 12))
    return 2 * (LINEAR + adapter) * 2000 + 2 * HEAD * 1500 + 4 * 2 * 8 * 80_000


def test_peak_memory_of_this_process_is_plausible() -> None:
    assert 2**24 < peak_memory_bytes(torch.device("cpu")) < 2**42
