from __future__ import annotations

import dataclasses
import queue
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from tests.ranks import free_port
from training.ranks import rendezvous
from training.ranks.rendezvous import Wait, agree_on_name, store_of_this_start
from training.world import World

SOON = timedelta(seconds=30)


def start(store: dist.Store, size: int) -> list[str]:
    """The name as every rank of one start has it; the ranks come in any order."""
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: agree_on_name(store, rank, size, Wait(SOON)), reversed(range(size))))


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
        others = [pool.submit(agree_on_name, store, rank, 3, Wait(SOON)) for rank in (1, 2)]
        # Nobody is there to name it.
        with pytest.raises(TimeoutError):
            others[0].result(timeout=0.3)
        name = agree_on_name(store, 0, 3, Wait(SOON))
        assert [other.result(timeout=30) for other in others] == [name, name]
    assert name != earlier


def test_a_start_that_was_cut_short_leaves_nothing_that_counts() -> None:
    store = dist.HashStore()
    # Rank 2 of three never came.
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(agree_on_name, store, 0, 3, Wait(timedelta(seconds=0.5)))
        agree_on_name(store, 1, 3, Wait(SOON))
        assert isinstance(first.exception(), TimeoutError)
    assert len(set(start(store, 3))) == 1


def test_ranks_that_do_not_come() -> None:
    at_once = timedelta(seconds=0.1)
    with pytest.raises(TimeoutError, match="2 of 3 ranks have not come to the rendezvous in time"):
        agree_on_name(dist.HashStore(), 0, 3, Wait(at_once))
    with pytest.raises(TimeoutError, match="rank 0 has not come to the rendezvous in time"):
        agree_on_name(dist.HashStore(), 1, 3, Wait(at_once))


def world_of(rank: int, size: int, port: int) -> World:
    return World(
        rank=rank, size=size, local_rank=rank, local_size=size, master_addr="127.0.0.1", master_port=port, launcher="none"
    )  # fmt: skip


def test_other_launchers_keep_no_store() -> None:
    """Every start has its own."""
    for environment in ({}, {"TORCHELASTIC_USE_AGENT_STORE": "False"}):
        store = store_of_this_start(world_of(0, 1, free_port()), SOON, None, environment)
        assert not store.check(["left"])
        store.set("left", "behind")


def test_rank_0_says_how_many_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and has the store when they have come."""
    monkeypatch.setattr(rendezvous, "SAY_SECONDS", 0.1)
    port, said = free_port(), queue.SimpleQueue[str]()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(store_of_this_start, world_of(0, 3, port), SOON, said.put, {})
        second = pool.submit(store_of_this_start, world_of(1, 3, port), SOON, said.put, {})
        second.result(timeout=30).set("from", "rank 1")
        assert said.get(timeout=30) in (
            f"waiting for {missing} of 3 ranks to come to 127.0.0.1:{port}" for missing in (1, 2)
        )
        assert not first.done()
        pool.submit(store_of_this_start, world_of(2, 3, port), SOON, said.put, {}).result(timeout=30)
        assert first.result(timeout=30).get("from") == b"rank 1"
    assert said.empty()


def test_those_who_come_late_to_rank_0_are_counted() -> None:
    with pytest.raises(TimeoutError, match="1 of 2 ranks have not come to the rendezvous in time"):
        store_of_this_start(world_of(0, 2, free_port()), timedelta(seconds=0.1), None, {})


@pytest.mark.parametrize("local_rank", [0, 1])
def test_the_first_rank_of_another_node_says_that_rank_0_is_not_there(
    monkeypatch: pytest.MonkeyPatch, local_rank: int
) -> None:
    monkeypatch.setattr(rendezvous, "SAY_SECONDS", 0.1)
    port, said = free_port(), queue.SimpleQueue[str]()
    world = dataclasses.replace(world_of(2, 4, port), local_rank=local_rank, local_size=2)
    with pytest.raises(dist.DistNetworkError):
        store_of_this_start(world, timedelta(seconds=1), said.put, {})
    if local_rank == 0:
        assert said.get(timeout=30) == f"waiting for rank 0 at 127.0.0.1:{port}"
    assert said.empty()


def test_torchruns_store_is_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "SAY_SECONDS", 0.1)
    said: list[str] = []
    with pytest.raises(TimeoutError):
        agree_on_name(dist.HashStore(), 0, 3, Wait(timedelta(seconds=0.5), said.append, "node7:29500"))
    assert said == ["waiting for 2 of 3 ranks to come to node7:29500"]
