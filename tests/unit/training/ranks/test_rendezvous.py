from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from training.ranks.rendezvous import agree_on_name, store_of_this_start
from training.world import World

SOON = timedelta(seconds=30)


def start(store: dist.Store, size: int) -> list[str]:
    """The name as every rank of one start has it; the ranks come in any order."""
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: agree_on_name(store, rank, size, SOON), reversed(range(size))))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_start_has_a_name_of_its_own(size: int) -> None:
    store = dist.HashStore()
    names = []
    for _ in range(4):
        found = start(store, size)
        assert len(set(found)) == 1
        names.append(found[0])
    assert len(set(names)) == 4


def test_a_rank_does_not_take_over_the_name_of_an_earlier_start() -> None:
    """The others come first, and find all that an earlier start has left."""
    store = dist.HashStore()
    earlier = start(store, 3)[0]
    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(agree_on_name, store, rank, 3, SOON) for rank in (1, 2)]
        # Nobody is there to name it.
        with pytest.raises(TimeoutError):
            others[0].result(timeout=0.3)
        name = agree_on_name(store, 0, 3, SOON)
        assert [other.result(timeout=30) for other in others] == [name, name]
    assert name != earlier


def test_a_start_that_was_cut_short_leaves_nothing_that_counts() -> None:
    store = dist.HashStore()
    # Rank 2 of three never came.
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(agree_on_name, store, 0, 3, timedelta(seconds=0.5))
        agree_on_name(store, 1, 3, SOON)
        assert isinstance(first.exception(), TimeoutError)
    assert len(set(start(store, 3))) == 1


def test_ranks_that_do_not_come() -> None:
    at_once = timedelta(seconds=0.1)
    with pytest.raises(TimeoutError, match="2 of 3 ranks have not come to the rendezvous in time"):
        agree_on_name(dist.HashStore(), 0, 3, at_once)
    with pytest.raises(TimeoutError, match="rank 0 has not come to the rendezvous in time"):
        agree_on_name(dist.HashStore(), 1, 3, at_once)


def test_only_torchruns_store_is_shared_by_starts() -> None:
    world = World(rank=0, size=1, local_rank=0, local_size=1, master_addr="x", master_port=1, launcher="none")
    assert store_of_this_start(world, SOON, {}) is None
    assert store_of_this_start(world, SOON, {"TORCHELASTIC_USE_AGENT_STORE": "False"}) is None
