from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.stream.token_stream import Row, RowDocument
from training.batches import HASH_SIZE, chain_hash, row_hash, stack, take_step
from training.model.loss import IGNORE

ZERO = np.zeros(4, dtype=np.int64)


def row(lane: int = 0, seed: int = 0, seq_len: int = 6) -> Row:
    random = np.random.default_rng([seed, lane])
    return Row(
        lane=lane,
        input_ids=random.integers(0, 100, seq_len),
        labels=random.integers(-100, 100, seq_len),
        position_ids=np.arange(seq_len),
    )


class TestTakingAStep:
    def test_rows_become_micro_batches_in_order(self) -> None:
        rows = [row(lane) for lane in range(4, 10)]
        batches = take_step(iter(rows), num_rows=6, micro_batch_rows=2).micro_batches
        assert [batch.first_lane for batch in batches] == [4, 6, 8]
        for number, batch in enumerate(batches):
            for name in ("input_ids", "position_ids"):
                tensor = getattr(batch, name)
                assert tensor.dtype == torch.int64
                assert tensor.shape == (2, 6)
                expected = [getattr(row, name).tolist() for row in rows[2 * number : 2 * number + 2]]
                assert tensor.tolist() == expected

    def test_only_its_rows_are_taken(self) -> None:
        rows = iter([row(lane) for lane in range(5)])
        take_step(rows, num_rows=3, micro_batch_rows=3)
        assert next(rows).lane == 3

    def test_the_hash_is_the_sum_over_its_rows(self) -> None:
        rows = [row(lane) for lane in range(4)]
        step = take_step(iter(rows), num_rows=4, micro_batch_rows=2)
        assert step.row_hash == sum(row_hash(item) for item in rows) % HASH_SIZE

    def test_smaller_integers_become_int64(self) -> None:
        batch = stack([Row(lane=0, input_ids=ZERO.astype(np.int32), labels=ZERO, position_ids=ZERO)])
        assert batch.input_ids.dtype == torch.int64

    def test_documents_are_kept_and_padding_is_not(self) -> None:
        found = [RowDocument(0, 1, 7, 0, 0), RowDocument(3, 0, 2, 1, 5)]
        padded = row(0)._replace(documents=(found[0], found[1], RowDocument(5, -1, 0, 0, 0)))
        step = take_step(iter([padded, row(1)]), num_rows=2, micro_batch_rows=1)
        assert step.documents == found


@st.composite
def packed_rows(draw: st.DrawFn) -> list[Row]:
    """Rows of documents of any lengths, with positions from 0 in each, and targets anywhere."""
    seq_len = draw(st.integers(1, 12))
    found = []
    for lane in range(draw(st.integers(1, 4))):
        starts = [0, *(place for place in range(1, seq_len) if draw(st.booleans()))]
        positions = np.concatenate([np.arange(b - a) for a, b in pairwise([*starts, seq_len])])
        labels = np.array(draw(st.lists(st.sampled_from([IGNORE, 0, 5]), min_size=seq_len, max_size=seq_len)))
        found.append(Row(lane=lane, input_ids=np.zeros(seq_len, np.int64), labels=labels, position_ids=positions))
    return found


class TestWhatTheDeviceNeedNotBeAsked:
    @given(rows=packed_rows())
    def test_targets(self, rows: list[Row]) -> None:
        batch = stack(rows)
        labels = torch.tensor(np.stack([each.labels for each in rows])).flatten()
        rebuilt = torch.full_like(labels, IGNORE)
        rebuilt[batch.target_index] = batch.targets
        assert rebuilt.tolist() == labels.tolist()
        assert len(batch.targets) == int((labels != IGNORE).sum())

    @given(rows=packed_rows())
    def test_attention_sees_exactly_its_document(self, rows: list[Row]) -> None:
        batch = stack(rows)
        size = batch.position_ids.numel()
        # The definition: a key is seen by a query of its row and document that is not before it.
        document, seen = [], 0
        for lane, each in enumerate(rows):
            count = 0
            for position in each.position_ids.tolist():
                count += position == 0
                document.append((lane, count))
        visible = {(q, k) for q in range(size) for k in range(q + 1) if document[q] == document[k]}
        bounds = batch.cu_seqlens.tolist()
        found = {(q, k) for a, b in pairwise(bounds) for q in range(a, b) for k in range(a, q + 1)}
        assert found == visible
        assert batch.pairs == len(visible)
        seen = max(b - a for a, b in pairwise(bounds))
        assert batch.max_seqlen == seen
        assert batch.cu_seqlens.dtype == torch.int32

    @given(rows=packed_rows(), copies=st.integers(1, 3))
    def test_boundaries_of_rows_repeated(self, rows: list[Row], copies: int) -> None:
        batch = stack(rows)
        assert batch.repeated_boundaries(copies).tolist() == stack(rows * copies).cu_seqlens.tolist()

    def test_a_row_that_continues_a_document_starts_a_part(self) -> None:
        batch = stack([row(0)._replace(position_ids=np.arange(3, 9))])
        assert batch.cu_seqlens.tolist() == [0, 6]

    def test_moving_keeps_everything(self) -> None:
        batch = stack([row(0), row(1)])
        moved = batch.to(torch.device("meta"))
        assert moved.input_ids.device.type == "meta"
        assert (moved.max_seqlen, moved.pairs, moved.first_lane) == (batch.max_seqlen, batch.pairs, 0)
        assert batch.to(torch.device("cpu")).input_ids is batch.input_ids


class TestHashes:
    @settings(max_examples=30)
    @given(seed=st.integers(0, 1000), rows=st.sampled_from([6, 12]), micro=st.integers(1, 3), data=st.data())
    def test_the_split_into_ranks_and_micro_batches_does_not_show(
        self, seed: int, rows: int, micro: int, data: st.DataObject
    ) -> None:
        world = data.draw(st.sampled_from([n for n in range(1, rows + 1) if rows % n == 0]))
        share = rows // world
        everything = [row(lane, seed) for lane in range(rows)]
        parts = [everything[rank * share : (rank + 1) * share] for rank in range(world)]
        sums = [take_step(iter(part), num_rows=share, micro_batch_rows=micro).row_hash for part in parts]
        whole = take_step(iter(everything), num_rows=rows, micro_batch_rows=rows).row_hash
        assert sum(sums) % HASH_SIZE == whole
        assert chain_hash("before", sum(sums)) == chain_hash("before", whole)

    @pytest.mark.parametrize("name", ["input_ids", "labels", "position_ids"])
    @pytest.mark.parametrize("place", [0, 3, -1])
    def test_every_number_of_a_row_counts(self, name: str, place: int) -> None:
        changed = getattr(row(), name).copy()
        changed[place] += 1
        assert row_hash(row()._replace(**{name: changed})) != row_hash(row())

    def test_the_lane_counts(self) -> None:
        assert row_hash(row()._replace(lane=1)) != row_hash(row())

    def test_the_order_of_tokens_counts(self) -> None:
        same = row()
        assert row_hash(same._replace(input_ids=same.input_ids[::-1])) != row_hash(same)

    def test_inputs_and_labels_are_not_interchangeable(self) -> None:
        same = row()
        assert row_hash(same._replace(input_ids=same.labels, labels=same.input_ids)) != row_hash(same)

    def test_the_width_of_the_integers_does_not_count(self) -> None:
        narrow = row()._replace(input_ids=row().input_ids.astype(np.int32))
        assert row_hash(narrow) == row_hash(row())

    def test_rows_exchanged_between_lanes_show_in_the_sum(self) -> None:
        one, other = row(0), row(1)
        exchanged = [other._replace(lane=0), one._replace(lane=1)]
        assert sum(map(row_hash, exchanged)) != row_hash(one) + row_hash(other)

    @given(seed=st.integers(0, 10_000))
    def test_sums_over_a_large_batch_are_exact_in_fp64(self, seed: int) -> None:
        found = row_hash(row(seed=seed))
        assert 0 <= found < HASH_SIZE
        assert int(float(2**13 * (HASH_SIZE - 1))) == 2**13 * (HASH_SIZE - 1)

    def test_the_chain_remembers_every_step_and_their_order(self) -> None:
        def chain(*sums: int) -> str:
            value = ""
            for step_sum in sums:
                value = chain_hash(value, step_sum)
            return value

        assert chain(1, 2, 3) == chain(1, 2, 3)
        found = {chain(1, 2, 3), chain(2, 1, 3), chain(1, 2), chain(1, 2, 4), chain(12, 3), chain(1, 23), chain()}
        assert len(found) == 7
        assert len(chain(1)) == 32
