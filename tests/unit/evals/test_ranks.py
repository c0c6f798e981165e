"""What torchrun's variables mean; several processes are started by tests/distributed."""

from __future__ import annotations

import pytest

from evals.errors import EvalError
from evals.ranks import Place, joined, place_in

STARTED = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_a_process_without_a_launcher_is_alone() -> None:
    assert place_in({"MASTER_PORT": "1"}) == Place(rank=0, size=1, local_rank=0)
    with joined(Place()):
        pass


def test_what_a_launcher_says() -> None:
    assert place_in(STARTED) == Place(rank=3, size=8, local_rank=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"LOCAL_RANK": None}, r"LOCAL_RANK is not set; start with torchrun, or unset RANK, WORLD_SIZE, MASTER_ADDR"),
        ({"RANK": "x"}, r"must be numbers \(.*'x'\); start with torchrun"),
        ({"RANK": "8"}, r"RANK is 8 and WORLD_SIZE 8: ranks count from 0"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, str | None], message: str) -> None:
    env = {name: value for name, value in (STARTED | changes).items() if value is not None}
    with pytest.raises(EvalError, match=message):
        place_in(env)
