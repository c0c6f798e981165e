from __future__ import annotations

import itertools

import pytest
import torch

from training.watch import phases
from training.watch.phases import Phases


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(phases.time, "perf_counter", found)
    return found


class TestOnACPU:
    def test_stretches_of_a_phase_add_up_until_reset(self, clock: Clock) -> None:
        measured = Phases(torch.device("cpu"))
        assert measured.seconds() == {}
        for seconds in (0.5, 0.25):
            with measured("forward"):
                clock.now += seconds
            clock.now += 10  # between phases
            with measured("backward"):
                clock.now += 2
        assert measured.seconds() == {"forward": 0.75, "backward": 4.0}
        assert measured.seconds() == {"forward": 0.75, "backward": 4.0}
        measured.reset()
        assert measured.seconds() == {}

    def test_a_failure_goes_on_its_way(self, clock: Clock) -> None:
        measured = Phases(torch.device("cpu"))
        with pytest.raises(ZeroDivisionError), measured("forward"):
            raise ZeroDivisionError


class Stream:
    """A GPU's stream whose work takes as long as it is told, however early the host asked for it."""

    def __init__(self) -> None:
        self.queued = 0.0
        """Milliseconds of work so far."""
        self.done = 0.0
        self.made = self.waits = 0

    def event(self, stream: Stream) -> type:
        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing
                stream.made += 1
                self.at = -1.0

            def record(self) -> None:
                self.at = stream.queued

            def query(self) -> bool:
                return self.at <= stream.done

            def synchronize(self) -> None:
                stream.waits += 1
                stream.done = max(stream.done, self.at)

            def elapsed_time(self, end: Event) -> float:
                assert self.query()
                assert end.query(), "torch refuses to give the time of an event that is not over"
                return end.at - self.at

        return Event


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    found = Stream()
    monkeypatch.setattr(torch.cuda, "Event", found.event(found))
    return found


class TestOnAGPU:
    def test_the_devices_time_counts_and_nothing_waits_before_it_is_asked_for(self, stream: Stream) -> None:
        measured = Phases(torch.device("cuda", 0))
        for _ in range(3):
            with measured("forward"):
                stream.queued += 250
            stream.queued += 1000
            with measured("backward"):
                stream.queued += 500
        assert stream.waits == 0
        assert measured.seconds() == {"forward": 0.75, "backward": 1.5}
        assert stream.waits == 1
        measured.reset()
        with measured("forward"):
            stream.queued += 1
        assert measured.seconds() == {"forward": 0.001}

    def test_events_are_used_again(self, stream: Stream) -> None:
        measured = Phases(torch.device("cuda", 0))
        for _ in range(5):
            with measured("forward"):
                stream.queued += 1
            measured.seconds()
        assert stream.made == 2

    def test_many_steps_between_two_lines_need_few_events_and_no_waiting(
        self, stream: Stream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(phases, "_FOLD_AT", 8)
        measured = Phases(torch.device("cuda", 0))
        for step in range(100):
            with measured("forward"):
                stream.queued += 1
            # The device is three steps behind the host.
            stream.done = max(0, step - 2)
        assert stream.waits == 0
        assert stream.made <= 2 * 8 + 2
        assert measured.seconds() == {"forward": pytest.approx(0.1)}

    def test_order_of_the_stretches_does_not_matter(self, stream: Stream) -> None:
        measured = Phases(torch.device("cuda", 0))
        for name, _ in itertools.product(("a", "b"), range(2)):
            with measured(name):
                stream.queued += 1000
        assert measured.seconds() == {"a": 2.0, "b": 2.0}
