from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from data_pipeline.errors import PipelineError
from tests.unit.training.test_batches import row
from training.batches import HASH_SIZE, row_hash
from training.loop import agree, try_step


class OtherRanks:
    """Stands for an engine on rank `rank`, with what the other ranks bring to a sum and to a gathering."""

    def __init__(self, rank: int, sums: list[list[float]], gathered: list[Any] | None = None) -> None:
        self.world = SimpleNamespace(rank=rank, size=len(sums) + 1)
        self._sums, self._gathered = sums, gathered

    def sum_over_ranks(self, values: list[float]) -> list[float]:
        assert all(len(other) == len(values) for other in self._sums)
        return [float(sum(column)) for column in zip(values, *self._sums, strict=True)]

    def gather(self, value: Any) -> list[Any]:
        assert self._gathered is not None, "only asked for when a rank has a problem"
        self._gathered.insert(self.world.rank, value)
        return self._gathered


class TestAgreeing:
    def test_hashes_are_summed_and_the_slowest_rank_counts(self) -> None:
        engine: Any = OtherRanks(1, [[HASH_SIZE - 1, 0, 0.5, 0, 0], [7, 0, 0, 0, 0.25]])
        assert agree(engine, 3, 0.125, None) == (HASH_SIZE + 9, 0.5)

    def test_a_problem_of_this_rank(self) -> None:
        engine: Any = OtherRanks(0, [[7, 0, 0, 0.25]], [None])
        with pytest.raises(PipelineError, match=r"^line 7 is damaged$"):
            agree(engine, 0, 0.0, "line 7 is damaged")

    def test_a_problem_of_another_rank(self) -> None:
        engine: Any = OtherRanks(0, [[0, 1, 0, 0.25]], ["line 7 is damaged"])
        with pytest.raises(PipelineError, match=r"^line 7 is damaged$"):
            agree(engine, 12, 0.0, None)


class TestTrying:
    def test_a_step(self) -> None:
        rows = [row(lane) for lane in range(4)]
        batches, hash_sum, waited, problem = try_step(iter(rows), 4, 2)
        assert [batch.first_lane for batch in batches] == [0, 2]
        assert hash_sum == sum(map(row_hash, rows)) % HASH_SIZE
        assert 0 < waited < 1
        assert problem is None

    def test_a_problem_amid_a_step(self) -> None:
        def rows() -> Iterator[Any]:
            yield row(0)
            raise PipelineError("line 7 is damaged")

        batches, hash_sum, _, problem = try_step(rows(), 4, 2)
        assert (batches, hash_sum, problem) == ([], 0, "line 7 is damaged")

    def test_a_mistake_in_the_program_is_no_problem_of_the_data(self) -> None:
        def rows() -> Iterator[Any]:
            raise KeyError("x")
            yield

        with pytest.raises(KeyError):
            try_step(rows(), 1, 1)
