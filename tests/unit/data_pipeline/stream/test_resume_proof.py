from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.errors import PipelineError
from data_pipeline.stream import killed_rank, resume_proof
from data_pipeline.stream.killed_rank import Rank, ResumeProofError
from data_pipeline.stream.resume_proof import prove

Write = Callable[[Path, Sequence[str]], Path]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, write_jsonl: Write, tokenizer_path: Path) -> DataConfig:
    path = write_jsonl(tmp_path_factory.mktemp("data") / "a.jsonl", [f"the {n} dogs and the fox" for n in range(50)])
    return DataConfig(sources={"a": SourceConfig(path=str(path))}, tokenizer=tokenizer_path, seq_len=16)


def test_kills_and_other_world_sizes_change_nothing(config: DataConfig) -> None:
    told: list[tuple[str, int, int]] = []
    proof = prove(
        config,
        num_lanes=4,
        seed=1,
        rows=118,
        restarts=2,
        world_sizes=[1, 2],
        rng_seed=4,
        progress=lambda *args: told.append(args),
    )
    assert proof.holds
    assert proof.rows == 120  # whole steps
    assert proof.restarts == 2
    assert [leg.killed for leg in proof.legs] == [True, True, False]
    assert proof.world_sizes in ([1, 2, 1], [2, 1, 2])
    assert proof.rows_compared == sum(leg.rows for leg in proof.legs)
    for before, leg in zip(proof.legs, proof.legs[1:], strict=False):
        assert leg.first_step == before.saved_steps
        assert before.unsaved_rows == before.rows - (before.saved_steps - before.first_step) * 4 > 0
    assert proof.legs[-1].first_step * 4 + proof.legs[-1].rows == 120
    assert all(leg.seconds_to_open > 0 and leg.seconds_to_first_row > 0 for leg in proof.legs)
    assert {what for what, _, _ in told} == {"uninterrupted", "life 1", "life 2", "life 3"}
    assert told[-1][1:] == (120, 120)


@pytest.mark.parametrize(
    ("sabotage", "lost"), [({"text_rows": 1}, True), ({"text_rows": -1}, False), ({"offset": 1}, None)]
)
def test_a_wrong_state_is_found(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch, sabotage: dict[str, int], lost: bool | None
) -> None:
    merge = resume_proof.merge_states

    def wrong(states: list[dict[str, Any]]) -> dict[str, Any]:
        state = merge(states)
        lowest = [low + sabotage.get(name, 0) for name, low in zip(state["columns"], state["lowest"], strict=True)]
        return state | {"lowest": lowest}

    monkeypatch.setattr(resume_proof, "merge_states", wrong)
    proof = prove(config, num_lanes=2, seed=1, rows=60, restarts=1, world_sizes=[1], rng_seed=0)
    assert proof.legs[0].saved_steps > 0
    assert not proof.holds
    assert proof.mismatches
    assert all(mismatch.leg == 1 for mismatch in proof.mismatches)
    assert (proof.rows_lost, proof.rows_repeated) == {True: (2, 0), False: (0, 2), None: (0, 0)}[lost]


def test_without_a_restart(config: DataConfig) -> None:
    proof = prove(config, num_lanes=2, seed=1, rows=2, restarts=0)
    assert proof.holds
    assert proof.restarts == 0
    assert proof.rows_compared == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"world_sizes": [2, 3]}, r"the world sizes \[3\] do not divide the global batch of 4 rows; name divisors"),
        ({"world_sizes": []}, "there is no world size to choose from"),
        ({"rows": 0}, "0 rows and 1 restarts prove nothing"),
        ({"restarts": -1}, "10 rows and -1 restarts prove nothing"),
    ],
)
def test_impossible_requests(config: DataConfig, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ResumeProofError, match=message):
        prove(config, **{"num_lanes": 4, "seed": 1, "rows": 10, "restarts": 1, **arguments})


def test_data_that_cannot_be_read_are_named(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of the proof: the uninterrupted stream has been made before the file was spoilt."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"the {n} dogs"}) + "\n" for n in range(30)))
    uninterrupted = resume_proof._uninterrupted

    def then_spoil(*args: Any) -> Any:
        hashes = uninterrupted(*args)
        path.write_text(path.read_text().replace('"text"', '"body"'))
        return hashes

    monkeypatch.setattr(resume_proof, "_uninterrupted", then_spoil)
    own = replace(config, sources={"a": SourceConfig(path=str(path))})
    with pytest.raises(PipelineError, match=r"a\.jsonl, line \d+ .* has no field 'text'"):
        prove(own, num_lanes=2, seed=1, rows=20, restarts=0, world_sizes=[1])


def test_a_process_that_dies_is_an_error(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Rank.begin

    def then_die(rank: Rank) -> dict[int, int]:
        lane_rows = begin(rank)
        os.kill(rank._process.pid, signal.SIGKILL)
        rank._process.wait()
        return lane_rows

    monkeypatch.setattr(Rank, "begin", then_die)
    with pytest.raises(ResumeProofError, match="the process for lanes 0 to 1 ended with code -9"):
        prove(config, num_lanes=2, seed=1, rows=20_000, restarts=0, world_sizes=[1])


def test_a_process_that_hangs_is_an_error(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(killed_rank, "PATIENCE_SECONDS", 0.01)
    with pytest.raises(ResumeProofError, match="the process for lanes 0 to 1 has sent no row for 0 s"):
        prove(config, num_lanes=2, seed=1, rows=20, restarts=0, world_sizes=[1])
