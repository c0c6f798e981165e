from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any
from unittest import mock

from launch.__main__ import main


def preflight(arguments: list[str]) -> None:
    """One rank of `python -m launch preflight`."""
    leave(main(["preflight", *arguments]))


def stopped_in(place: str, arguments: list[str]) -> None:
    """A rank that hangs as soon as it comes to `module.function`."""

    def hang(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    with mock.patch(place, hang):
        preflight(arguments)


def with_clock(ahead: float, arguments: list[str]) -> None:
    """A rank whose clock is wrong."""
    right = time.time

    def wrong() -> float:
        return right() + ahead

    with mock.patch("time.time", new=wrong):
        preflight(arguments)


def with_wrong_sums(arguments: list[str]) -> None:
    """A rank that gets another number than the others in the middle of every sum."""
    import training.ranks.fabric as fabric

    right = fabric.dist.all_reduce

    def wrong(values: Any, **options: Any) -> None:
        right(values, **options)
        values[len(values) // 2] += 1

    with mock.patch.object(fabric.dist, "all_reduce", new=wrong):
        preflight(arguments)


def leave(code: int) -> None:
    """As an interpreter would."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
