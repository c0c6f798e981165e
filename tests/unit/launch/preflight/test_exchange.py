from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from launch.preflight import clocks
from launch.preflight.exchange import Exchange, Silence


class Memory:
    """A store of one process."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.changed = threading.Condition()

    def set(self, key: str, value: str) -> None:
        with self.changed:
            self.values[key] = value.encode()
            self.changed.notify_all()

    def get(self, key: str) -> bytes:
        return self.values[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        with self.changed:
            if not self.changed.wait_for(lambda: self.check(keys), timeout.total_seconds()):
                raise RuntimeError("wait timeout")


class Gone(Memory):
    def set(self, key: str, value: str) -> None:
        raise RuntimeError("Broken pipe")


def on_ranks(size: int, act: Callable[[Exchange], Any], *, silent: int | None = None, limit: float = 0.2) -> list[Any]:
    """What `act` returns on every rank, or the error it raises; None of a silent one."""
    store = Memory()

    def run(rank: int) -> Any:
        try:
            return None if rank == silent else act(Exchange(store, rank, size, limit=limit))
        except Silence as error:
            return error

    with ThreadPoolExecutor(size) as ranks:
        return list(ranks.map(run, range(size)))


def test_all_hear_all() -> None:
    heard = on_ranks(3, lambda exchange: exchange.gathered("x", 10 * exchange.rank, range(3)), limit=20)
    assert heard == 3 * [{0: 0, 1: 10, 2: 20}]


def test_only_rank_0_collects() -> None:
    heard = on_ranks(3, lambda exchange: exchange.collected("x", exchange.rank, range(3)), limit=20)
    assert heard == [{0: 0, 1: 1, 2: 2}, {1: 1}, {2: 2}]


def test_who_is_silent_is_waited_for_once() -> None:
    def act(exchange: Exchange) -> Any:
        exchange.doing("x")
        values = exchange.gathered("x", exchange.rank, range(3))
        # Would take another limit.
        again = exchange.gathered("y", exchange.rank, range(3))
        return values, again, exchange.lost

    zero, one, two = on_ranks(3, act, silent=2)
    assert zero == ({0: 0, 1: 1}, {0: 0, 1: 1}, {2: ""})
    assert one[:2] == zero[:2]
    assert two is None


def test_what_a_lost_rank_was_doing_is_known() -> None:
    def act(exchange: Exchange) -> Any:
        exchange.doing("looking at its gpus")
        if exchange.rank == 1:
            return None
        exchange.collected("x", 0, range(2))
        return exchange.lost

    # Rank 1 has said it before rank 0 gives up, because that takes a limit.
    assert on_ranks(2, act, limit=1)[0] == {1: "looking at its gpus"}


def test_a_rank_that_is_too_late_is_told() -> None:
    store = Memory()
    zero, one = (Exchange(store, rank, 2, limit=0.05) for rank in range(2))
    zero.gathered("x", 0, range(2))
    with pytest.raises(Silence, match="rank 1 was too late with x, the others went on without it"):
        one.gathered("x", 1, range(2))


def test_without_rank_0() -> None:
    with pytest.raises(Silence, match="the connection to rank 0 is lost"):
        Exchange(Gone(), 1, 2, limit=1).put("x", 1)
    exchange = Exchange(Memory(), 1, 2, limit=-11.9)  # which waits for 5 times this, and a minute
    with pytest.raises(Silence, match="rank 0 does not answer any more"):
        exchange.told("x")


def test_rank_0_stays_until_the_others_have_read() -> None:
    def act(exchange: Exchange) -> bool:
        exchange.close()
        return exchange._store.check(["bye/1", "bye/2"])

    assert on_ranks(3, act)[0]


class TestClocks:
    def test_an_offset_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = clocks.time.time
        ahead = {"rank-1": -40.0, "rank-2": 7.0}
        monkeypatch.setattr(clocks.time, "time", lambda: right() + ahead.get(threading.current_thread().name, 0))

        def act(exchange: Exchange) -> dict[str, float]:
            threading.current_thread().name = f"rank-{exchange.rank}"
            return clocks.measure(exchange, {"n1": 0, "n2": 1, "n3": 2})

        found = on_ranks(3, act, limit=20)[0]
        assert found == pytest.approx({"n2": -40, "n3": 7}, abs=0.5)

    def test_a_silent_node_is_left_out(self) -> None:
        def act(exchange: Exchange) -> Any:
            return clocks.measure(exchange, {"n1": 0, "n2": 1}), exchange.lost

        assert on_ranks(2, act, silent=1)[0] == ({}, {1: ""})

    @pytest.mark.parametrize(
        ("ahead", "finding"),
        [
            (0.9, None), (1.5, ("warn", "n2: its clock is 1.5 s ahead of that of the other 2 nodes; have it set by NTP")),
            (-31.0, ("fail", "n2: its clock is 31.0 s behind that of the other 2 nodes; have it set by NTP")),
        ],
    )  # fmt: skip
    def test_what_is_too_much(self, ahead: float, finding: tuple[str, str] | None) -> None:
        judged = clocks.judge({"n2": ahead, "n3": 0.0004}, "n1")
        assert [(f.level, str(f)) for f in judged.findings] == ([] if finding is None else [finding])

    @pytest.mark.parametrize("seconds", [100.0, -100.0])
    def test_rank_0s_node_may_be_the_one(self, seconds: float) -> None:
        (finding,) = clocks.judge({"n2": -seconds, "n3": -seconds}, "n1").findings
        way = "ahead of" if seconds > 0 else "behind"
        assert (finding.level, str(finding)) == (
            "fail", f"n1: its clock is 100.0 s {way} that of the other 2 nodes; have it set by NTP")  # fmt: skip

    @pytest.mark.parametrize(
        ("ahead", "times"),
        [
            ({"n2": 100.0}, "n2 +100.0 s"), ({"n2": -100.0}, "n2 -100.0 s"),
            ({"n2": 0.1, "n3": 100.0, "n4": 100.0}, "n2 +0.1 s, n3 +100.0 s, n4 +100.0 s"),
            ({"n2": 50.0, "n3": 100.0}, "n2 +50.0 s, n3 +100.0 s"),
        ],
    )  # fmt: skip
    def test_without_a_majority_none_is_named(self, ahead: dict[str, float], times: str) -> None:
        (finding,) = clocks.judge(ahead, "n1").findings
        assert (finding.level, finding.node, finding.message) == (
            "fail", None, f"clocks differ, and which are right can't be told: against n1's {times}; have them set by NTP")  # fmt: skip

    def test_the_line(self) -> None:
        assert clocks.judge({"n2": -0.0021}, "n1").line == "within 2.1 ms of each other"
        assert clocks.judge({"n2": 2, "n3": -1}, "n1").line == "within 3.0 s of each other"
        assert clocks.judge({}, "n1").line == "one node"
