from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from training.watch import traffic
from training.watch.traffic import Traffic, install

SILENT = {"barrier", "recv", "recv_anysource", "_end_coalescing"}
"""Methods that start work and send nothing, or nothing that was not counted where it was asked for."""


def test_every_method_of_this_torch_that_sends_is_counted() -> None:
    works = {
        name for name in dir(dist.ProcessGroup) if "-> c10d::Work" in (getattr(dist.ProcessGroup, name).__doc__ or "")
    }
    assert works >= {"allreduce", "broadcast", "barrier"}, "the documentation of torch has changed"
    assert works - SILENT <= traffic._METHODS.keys()


class Group:
    """Stands for a process group of 4 ranks."""

    def size(self) -> int:
        return 4


def call(name: str, *args: Any) -> list[Any]:
    """Call a counted method of the group; return what the method itself was called with."""
    seen: list[Any] = []
    kind, index, factor = traffic._METHODS[name]
    traffic._counted(lambda group, *values: seen.extend(values), kind, index, factor)(Group(), *args)
    return seen


PART, WHOLE = torch.zeros(6), torch.zeros(24)  # 24 and 96 bytes
PARTS = [torch.zeros(6) for _ in range(4)]
HALF = torch.zeros(24, dtype=torch.bfloat16)  # 48 bytes


@pytest.mark.parametrize(
    ("name", "args", "kind", "sent"),
    [
        # Each rank passes on 3 parts, its own and two it received.
        ("all_gather_single", (WHOLE, PART, "options"), "all_gather", 72),
        ("_allgather_base", (WHOLE, PART, "options"), "all_gather", 72),
        ("allgather", ([PARTS], [PART], "options"), "all_gather", 72),
        ("all_gather_single_coalesced", ([WHOLE, WHOLE], [PART, PART], "options"), "all_gather", 144),
        # 3 partial sums of a quarter.
        ("reduce_scatter_single", (PART, WHOLE, "options"), "reduce_scatter", 72),
        ("_reduce_scatter_base", (PART, WHOLE, "options"), "reduce_scatter", 72),
        ("reduce_scatter", ([PART], [PARTS], "options"), "reduce_scatter", 72),
        # A reduce-scatter, then an all-gather.
        ("allreduce", ([WHOLE], "options"), "all_reduce", 144),
        ("allreduce", (WHOLE,), "all_reduce", 144),
        ("allreduce", ([HALF], "options"), "all_reduce", 72),
        ("allreduce_coalesced", ([WHOLE, HALF], "options"), "all_reduce", 216),
        # Three quarters of what a rank has are for others.
        ("all_to_all_single", (WHOLE, WHOLE, [], [], "options"), "all_to_all", 72),
        ("alltoall", (PARTS, PARTS, "options"), "all_to_all", 72),
        # 3 ranks receive 96 bytes: 288 on the wire, 72 per rank.
        ("broadcast", ([WHOLE], "options"), "broadcast", 72),
        ("reduce", ([WHOLE], "options"), "reduce", 72),
        # 3 ranks send, or are sent, 24 bytes.
        ("gather", ([PARTS], [PART], "options"), "gather", 18),
        ("gather", ([], [PART], "options"), "gather", 18),
        ("scatter", ([PART], [], "options"), "scatter", 18),
        ("send", ([WHOLE], 2, 0), "send", 96),
    ],
)  # fmt: skip
def test_bytes_by_hand(name: str, args: tuple[Any, ...], kind: str, sent: float) -> None:
    counted = Traffic()
    assert [id(value) for value in call(name, *args)] == [id(value) for value in args]
    assert counted.bytes_by_kind() == {kind: pytest.approx(sent)}
    assert (counted.bytes, counted.calls) == (pytest.approx(sent), 1)
    assert counted.calls_by_kind() == {kind: 1}


def test_tensors_given_by_name_count_too() -> None:
    counted = Traffic()
    kind, index, factor = traffic._METHODS["all_gather_single"]
    traffic._counted(lambda group, output, input: None, kind, index, factor)(Group(), output=WHOLE, input=PART)
    assert counted.bytes == 72


def test_windows_overlap_and_start_anew() -> None:
    outer = Traffic()
    call("allreduce", [WHOLE])
    inner = Traffic()
    assert (inner.bytes, inner.calls, inner.bytes_by_kind()) == (0, 0, {})
    call("broadcast", [WHOLE])
    assert (outer.bytes, inner.bytes) == (216, 72)
    outer.start()
    assert (outer.bytes, inner.bytes, inner.calls) == (0, 72, 1)


def test_a_world_of_one_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Group, "size", lambda self: 1)
    counted = Traffic()
    call("allreduce", [WHOLE])
    assert (counted.bytes, counted.calls_by_kind()) == (0, {"all_reduce": 1})


def test_installing_again_counts_once() -> None:
    install()
    before: Callable[..., Any] = dist.ProcessGroup.allreduce
    install()
    assert dist.ProcessGroup.allreduce is before


def test_waiting_is_added_up_and_passes_on_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 1.5, 10.0, 12.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    counted = Traffic()
    assert traffic._timed(lambda work, timeout: (work, timeout))("work", 7) == ("work", 7)
    assert counted.seconds == 0.5
    with pytest.raises(ZeroDivisionError):
        traffic._timed(lambda work: 1 / 0)("work")
    assert counted.seconds == 2.5
