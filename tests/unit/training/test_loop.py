from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from data_pipeline.errors import PipelineError
from tests.unit.training.test_batches import row
from training.batches import HASH_SIZE, StepBatch, row_hash, take_step
from training.errors import NonFiniteGradients
from training.loop import Shared, refuse_nothing_learned, take_batch
from training.progress import Progress
from training.ranks import distributed


class OneStep:
    """Stands for StepBatches with one step, or with a problem."""

    def __init__(self, batch: StepBatch | PipelineError, waited_seconds: float = 0.0) -> None:
        self._batch, self.waited_seconds = batch, waited_seconds

    def take(self) -> StepBatch:
        if isinstance(self._batch, PipelineError):
            raise self._batch
        return self._batch


def other_ranks(
    monkeypatch: pytest.MonkeyPatch, rank: int, sums: list[list[float]], gathered: list[Any] | None = None
) -> Any:
    """An engine on rank `rank`, with what the other ranks bring to a sum and to a gathering."""

    def sum_over_ranks(values: list[float]) -> list[float]:
        assert all(len(other) == len(values) for other in sums)
        return [float(sum(column)) for column in zip(values, *sums, strict=True)]

    def gather(value: Any) -> list[Any]:
        assert gathered is not None, "only asked for when a rank has a problem"
        return [*gathered[:rank], value, *gathered[rank:]]

    monkeypatch.setattr(distributed, "sum_over_ranks", sum_over_ranks)
    return SimpleNamespace(world=SimpleNamespace(rank=rank, size=len(sums) + 1), gather=gather)


def one_step() -> StepBatch:
    return take_step(iter([row(0), row(1)]), num_rows=2, micro_batch_rows=2)


class TestTakingABatch:
    def test_counts_are_summed_and_the_slowest_rank_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        others = [[HASH_SIZE - 1, 10, 100, 0, 0, 0.5, 0, 0], [7, 20, 200, 0, 1, 0, 0, 0.25]]
        engine, batch = other_ranks(monkeypatch, 1, others), one_step()
        found, shared = take_batch(OneStep(batch, 0.125), engine, wants_profile=False)  # type: ignore[arg-type]
        assert found is batch
        assert shared == Shared(
            row_hash=(row_hash(row(0)) + row_hash(row(1)) + 6) % HASH_SIZE, targets=batch.num_targets + 30,
            pairs=2 * 21 + 300, wants_profile=True, longest_wait=0.5,
        )  # fmt: skip

    def test_a_problem_of_this_rank(self, monkeypatch: pytest.MonkeyPatch) -> None:
        engine = other_ranks(monkeypatch, 0, [[7, 1, 1, 0, 0, 0, 0.25]], [None])
        batches: Any = OneStep(PipelineError("line 7 is damaged"))
        with pytest.raises(PipelineError, match=r"^line 7 is damaged$"):
            take_batch(batches, engine, wants_profile=False)

    def test_a_problem_of_another_rank(self, monkeypatch: pytest.MonkeyPatch) -> None:
        engine = other_ranks(monkeypatch, 0, [[0, 0, 0, 1, 0, 0, 0.25]], ["line 7 is damaged"])
        batches: Any = OneStep(one_step())
        with pytest.raises(PipelineError, match=r"^line 7 is damaged$"):
            take_batch(batches, engine, wants_profile=False)


def test_a_run_that_learned_nothing_is_no_success() -> None:
    refuse_nothing_learned(Progress(step=4, skipped_steps=3))
    with pytest.raises(NonFiniteGradients, match=r"^all 4 steps were skipped .* weights in model\.base .* not numbers"):
        refuse_nothing_learned(Progress(step=4, skipped_steps=4))
