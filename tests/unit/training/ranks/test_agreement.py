from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.minimal import minimal_config
from training.config import Config, to_dict
from training.ranks import agreement
from training.ranks.agreement import refuse_disagreement
from training.recipe import ConfigError
from training.record.run_record import flatten, versions
from training.world import World

WORLD = World(rank=0, size=2, local_rank=0, local_size=2, master_addr="x", master_port=1, launcher="none")
DS = {"zero_optimization": {"stage": 3}}


def with_other_rank(monkeypatch: pytest.MonkeyPatch, config: Config, ds: dict[str, Any], **more: str) -> None:
    """The other rank has this."""
    theirs = {
        **flatten(to_dict(config)), **flatten(ds, "--ds_config: "), **flatten({**versions(), **more}, "version of "),
    }  # fmt: skip
    answers = iter(["another digest", theirs])
    monkeypatch.setattr(agreement, "gather", lambda value, world: [value, next(answers)])


def test_ranks_that_agree_exchange_a_digest_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exchanged: list[Any] = []

    def gather(value: Any, world: World) -> list[Any]:
        exchanged.append(value)
        return [value] * world.size

    monkeypatch.setattr(agreement, "gather", gather)
    refuse_disagreement(minimal_config(tmp_path), DS, WORLD)
    assert [len(value) for value in exchanged] == [64]


def test_what_differs_is_named_with_both_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = minimal_config(tmp_path)
    other = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=0.5))
    with_other_rank(monkeypatch, other, {"zero_optimization": {"stage": 3, "sub_group_size": 7}}, torch="2.11.0")
    with pytest.raises(ConfigError) as caught:
        refuse_disagreement(config, DS, WORLD)
    hint = "start all ranks with the same recipe, options and software"
    assert caught.value.problems == [
        f"optim.lr: 0.5 on rank 1, {config.optim.lr} on rank 0; {hint}",
        f"--ds_config: zero_optimization.sub_group_size: 7 on rank 1, null on rank 0; {hint}",
        f'version of torch: "2.11.0" on rank 1, "{versions()["torch"]}" on rank 0; {hint}',
    ]


def test_many_differences_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = minimal_config(tmp_path)
    with_other_rank(monkeypatch, config, {f"key{number}": number for number in range(12)})
    with pytest.raises(ConfigError) as caught:
        refuse_disagreement(config, {}, WORLD)
    assert len(caught.value.problems) == 9
    assert caught.value.problems[-1] == "and 4 more differences between ranks"


@pytest.mark.parametrize(("placement", "differ"), [("zero3_hpz", True), ("zero3", False), ("replicated", False)])
def test_nodes_of_different_sizes_are_for_all_but_hpz(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placement: str, differ: bool
) -> None:
    config, digests = minimal_config(tmp_path, "--train.placement", placement), []

    def gather(value: Any, world: World) -> list[Any]:
        digests.append(value)
        return [value] * world.size

    monkeypatch.setattr(agreement, "gather", gather)
    for local_size in (1, 2):
        refuse_disagreement(config, {}, dataclasses.replace(WORLD, local_size=local_size))
    assert (digests[0] != digests[1]) == differ
