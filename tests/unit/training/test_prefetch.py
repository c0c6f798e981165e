from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import PipelineError
from data_pipeline.stream.token_stream import Row
from tests.unit.training.minimal import minimal_config
from tests.unit.training.test_batches import row
from training.prefetch import StepBatches


class Counting:
    """A stream of numbered rows over two lanes, whose state is how many it has given."""

    lanes = range(2)

    def __init__(self, fails_at: int | None = None, seconds: float = 0.0) -> None:
        self.given, self._fails_at, self._seconds = 0, fails_at, seconds

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        time.sleep(self._seconds)
        if self.given == self._fails_at:
            raise PipelineError("line 7 is damaged")
        self.given += 1
        return row(self.given % 2, seed=self.given)

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = state["given"]

    def counts(self) -> dict[str, dict[str, int]]:
        return {"text": {"rows": self.given}}


def batches(tmp_path: Path, stream: Any) -> StepBatches:
    return StepBatches(stream, minimal_config(tmp_path, "--train.micro_batch_rows", "1"))


def wait_until_ahead(stream: Counting, given: int) -> None:
    deadline = time.monotonic() + 10
    while stream.given < given and time.monotonic() < deadline:
        time.sleep(0.005)
    assert stream.given >= given, "nothing was made ahead"


def test_steps_are_the_streams_rows_in_order(tmp_path: Path) -> None:
    with batches(tmp_path, Counting()) as found:
        for step in range(5):
            micro = found.take().micro_batches
            expected = [row(number % 2, seed=number).input_ids.tolist() for number in (2 * step + 1, 2 * step + 2)]
            assert [batch.input_ids[0].tolist() for batch in micro] == expected


def test_what_is_made_ahead_leaves_no_trace(tmp_path: Path) -> None:
    stream = Counting()
    with batches(tmp_path, stream) as found:
        assert found.state_dict() == {"given": 0}
        found.start()
        wait_until_ahead(stream, 2)
        assert found.state_dict() == {"given": 0}
        found.take()
        wait_until_ahead(stream, 4)
        assert found.state_dict() == {"given": 2}
        assert found.counts() == {"text": {"rows": 2}}


def test_loading_a_state_throws_away_what_is_ready(tmp_path: Path) -> None:
    stream = Counting()
    with batches(tmp_path, stream) as found:
        first = found.take()
        wait_until_ahead(stream, 4)
        found.load_state_dict({"given": 0})
        assert found.state_dict() == {"given": 0}
        again = found.take()
        assert again.row_hash == first.row_hash
        assert found.take().row_hash != first.row_hash


def test_a_problem_comes_when_its_step_is_taken(tmp_path: Path) -> None:
    with batches(tmp_path, Counting(fails_at=3)) as found:
        found.take()
        with pytest.raises(PipelineError, match="line 7 is damaged"):
            found.take()
        assert found.state_dict() == {"given": 2}


def test_the_wait_is_that_of_the_last_step(tmp_path: Path) -> None:
    with batches(tmp_path, Counting(seconds=0.03)) as found:
        found.take()
        assert found.waited_seconds > 0.04
        time.sleep(0.3)
        found.take()
        assert found.waited_seconds < 0.03


def test_closing_ends_the_thread(tmp_path: Path) -> None:
    found = batches(tmp_path, Counting())
    found.take()
    found.close()
    found.close()
    assert "step batches" not in {thread.name for thread in threading.enumerate()}
