from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.training.minimal import write_recipe


@pytest.fixture(autouse=True)
def same_handlers_afterwards() -> Iterator[None]:
    """The demo changes what SIGTERM does."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A minimal recipe without problems, with the files it names."""
    return write_recipe(tmp_path)
