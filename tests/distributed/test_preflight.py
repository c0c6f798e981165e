"""Preflight with real processes, each a node of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import end, rank_environments, start

pytestmark = pytest.mark.dist
SCENARIOS = "tests.distributed.preflight_scenarios"


class Preflight:
    """Starts ranks and keeps what they leave."""

    def __init__(self, folder: Path, recipe: Path) -> None:
        self.folder, self.recipe = folder, recipe
        self.failing, self.report = folder / "out" / "failing", folder / "out" / "report.json"

    def run(
        self, size: int, *more: str, local_size: int = 1, limit: float = 60, odd: dict[int, tuple[str, dict[str, Any]]] | None = None,
        variables: dict[int, dict[str, str]] | None = None, absent: int | None = None, fresh: bool = False,
    ) -> list[int | None]:  # fmt: skip
        """Exit codes of the ranks; None of those that had to be ended.

        Args:
            size: number of ranks.
            more: arguments.
            local_size: ranks of a node.
            limit: seconds that are waited for a rank.
            odd: by rank, another function of the scenarios and its arguments.
            variables: by rank, more of its environment.
            absent: a rank that is not started.
            fresh: whether each is an interpreter of its own.
        """
        arguments = [str(self.recipe), "--train.placement", "replicated", "--failing", str(self.failing), "--report",
                     str(self.report), "--limit", str(limit), *more]  # fmt: skip
        ranks = {}
        for rank, environment in enumerate(rank_environments(size, local_size)):
            if rank == absent:
                continue
            environment |= {"SLURMD_NODENAME": f"n{rank // local_size + 1}"} | (variables or {}).get(rank, {})
            function, values = (odd or {}).get(rank, ("preflight", {}))
            ranks[rank] = start(f"{SCENARIOS}:{function}", {"arguments": arguments} | values, environment=environment,
                                output=self.folder / f"{rank}.log", fresh=fresh)  # fmt: skip
        try:
            for rank, process in ranks.items():
                if rank not in (odd or {}):
                    process.wait(timeout=200)
        finally:
            codes = [ranks[rank].poll() if rank in ranks else None for rank in range(size)]
            end(list(ranks.values()))
        return codes

    def said(self, rank: int = 0) -> str:
        return (self.folder / f"{rank}.log").read_text()


@pytest.fixture
def preflight(tmp_path: Path, tiny_recipe: Path) -> Preflight:
    return Preflight(tmp_path, tiny_recipe)


def test_healthy(preflight: Preflight, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert preflight.run(4, "--run.dir", str(run), local_size=2) == [0, 0, 0, 0]
    lines = preflight.said().splitlines()
    # Chance may make one end of a sum much slower on a busy machine, which is worth a warning.
    assert lines[0].startswith("preflight: healthy")
    assert "2 node(s) (n1, n2), 4 rank(s), " in lines[0]
    checks = {line.split()[0]: line for line in lines[1:] if line and not line.startswith("  warn")}
    assert list(checks) == ["ranks", "gpus", "hosts", "clocks", "storage", "inputs", "versions", "wires"]
    assert "what one node writes the others see within" in checks["storage"]
    assert "GB/s inside nodes" in checks["wires"]
    assert "GB/s between two nodes" in checks["wires"]
    assert [preflight.said(rank) for rank in (1, 2, 3)] == ["", "", ""]
    assert preflight.failing.read_text() == ""
    assert json.loads(preflight.report.read_text())["code"] == 0
    assert not run.exists()


def test_many_things_at_once(preflight: Preflight, tiny_recipe: Path, tmp_path: Path) -> None:
    # n2's clock is wrong, n3 sees other data and another place for the run, n4 hangs when it is to look for the others' files.
    for name in ("here", "there"):
        shutil.copytree(tiny_recipe.parent, tmp_path / name)
    with (tmp_path / "there" / "train.jsonl").open("a") as file:
        file.write("{}\n")
    places = {rank: {"PLACE": str(tmp_path / ("there" if rank == 2 else "here"))} for rank in range(4)}
    codes = preflight.run(
        4, "--data.sources.text.path", "$PLACE/train.jsonl", "--run.dir", "$PLACE/run", limit=15, variables=places,
        odd={1: ("with_clock", {"ahead": 1000}), 3: ("stopped_in", {"place": "launch.preflight.storage.watch"})},
    )  # fmt: skip
    said = preflight.said()
    assert [codes[0], codes[2]] == [1, 1], said
    assert "preflight: n2, n3, n4 fail; 4 node(s)" in said
    assert "FAIL  n2: its clock is 1000.0 s ahead of that of the other 3 nodes" in said
    assert f"FAIL  n3: run.dir is {tmp_path}/there/run there, and {tmp_path}/here/run on the other 2 nodes" in said
    assert (
        f"FAIL  n3: data.sources.text.path: {tmp_path}/there/train.jsonl is not what it is on the other 3 nodes" in said
    )
    assert "FAIL  n4: rank 3: no answer within 15 s; last busy with: writing to and reading from run.dir" in said
    assert "wires     not tried: rank 3 is missing" in said
    assert preflight.failing.read_text() == "n2\nn3\nn4\n"
    assert list(tmp_path.rglob(".preflight*")) == []


def test_the_first_node_is_the_odd_one(preflight: Preflight, tiny_recipe: Path, tmp_path: Path) -> None:
    # Its clock is wrong, it has a stale copy of the data and another place for the run.
    for name in ("here", "there"):
        shutil.copytree(tiny_recipe.parent, tmp_path / name)
    with (tmp_path / "there" / "train.jsonl").open("a") as file:
        file.write("{}\n")
    places = {rank: {"PLACE": str(tmp_path / ("there" if rank == 0 else "here"))} for rank in range(3)}
    codes = preflight.run(
        3, "--train.global_batch_rows", "6", "--data.sources.text.path", "$PLACE/train.jsonl", "--run.dir", "$PLACE/run",
        variables=places, odd={0: ("with_clock", {"ahead": -1000})},
    )  # fmt: skip
    said = preflight.said()
    assert codes[1:] == [1, 1], said
    assert "preflight: n1 fails; 3 node(s)" in said
    assert "FAIL  n1: its clock is 1000.0 s behind that of the other 2 nodes" in said
    assert f"FAIL  n1: run.dir is {tmp_path}/there/run there, and {tmp_path}/here/run on the other 2 nodes" in said
    assert (
        f"FAIL  n1: data.sources.text.path: {tmp_path}/there/train.jsonl is not what it is on the other 2 nodes" in said
    )
    assert said.count("FAIL") == 3
    assert preflight.failing.read_text() == "n1\n"


def test_the_first_node_can_not_read_the_recipe(preflight: Preflight, tmp_path: Path) -> None:
    elsewhere = [str(tmp_path / "none.toml"), "--failing", str(preflight.failing), "--report", str(preflight.report)]
    codes = preflight.run(3, "--train.global_batch_rows", "6", "--run.dir", str(tmp_path / "run"), limit=20,
                          odd={0: ("preflight", {"arguments": [*elsewhere, "--limit", "20"]})})  # fmt: skip
    said = preflight.said()
    assert codes[1:] == [1, 1], said
    assert "preflight: n1 fails; 3 node(s)" in said
    assert f"FAIL  n1: --recipe {tmp_path}/none.toml: no such file" in said
    assert said.count("FAIL") == 1
    assert "what one node writes the others see within" in said
    assert preflight.failing.read_text() == "n1\n"


def test_the_first_node_is_alone(preflight: Preflight, tmp_path: Path) -> None:
    assert preflight.run(2, "--run.dir", str(tmp_path / "run"), limit=2, absent=1) == [1, None]
    assert "FAIL  rank 1: no report within 2 s; nobody came but n1 itself" in preflight.said()
    assert preflight.failing.read_text() == ""


def test_a_rank_that_hangs_in_a_sum(preflight: Preflight, tmp_path: Path) -> None:
    codes = preflight.run(
        3,
        "--train.global_batch_rows",
        "6",
        limit=16,
        odd={1: ("stopped_in", {"place": "training.ranks.fabric._pattern"})},
    )
    said = preflight.said()
    assert [codes[0], codes[2]] == [1, 1], said
    assert "FAIL  n2: rank 1: no answer within 16 s; last busy with: a sum with n" in said
    assert said.count("FAIL") == 1
    assert "wires     no sum came to an end" in said
    assert preflight.failing.read_text() == "n2\n"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_node_that_gets_wrong_sums(preflight: Preflight, tmp_path: Path, rank: int) -> None:
    codes = preflight.run(3, "--train.global_batch_rows", "6", "--run.dir", str(tmp_path / "run"),
                          odd={rank: ("with_wrong_sums", {})})  # fmt: skip
    said, node = preflight.said(), f"n{rank + 1}"
    assert [codes[1 - rank], codes[2]] == [1, 1], said
    assert f"FAIL  {node}: the sum of n1 and n2 is wrong" in said
    assert f"FAIL  {node}: the sum of {node} and n3 is wrong" in said
    assert preflight.failing.read_text() == f"{node}\n"


def test_a_rank_that_does_not_come(preflight: Preflight, tmp_path: Path) -> None:
    codes = preflight.run(4, "--run.dir", str(tmp_path / "run"), local_size=2, limit=15, absent=3)
    said = preflight.said()
    assert codes == [1, 1, 1, None], said
    assert "FAIL  n2: rank 3: no report within 15 s" in said
    assert "storage   " in said  # the rest is reported all the same
    assert "wires     not tried: rank 3 is missing" in said
    assert preflight.failing.read_text() == "n2\n"


def test_rank_0_can_not_be_reached(preflight: Preflight) -> None:
    assert preflight.run(2, limit=1, absent=0, fresh=True) == [None, 1]
    (line,) = preflight.said(1).splitlines()
    assert line.startswith("preflight: n2: rank 1: can't reach rank 0 at 127.0.0.1:")
    assert line.endswith("within 3 s: it was not started, or a firewall or a wrong MASTER_ADDR is in between")


def test_a_wrong_configuration_is_nobodys_fault(preflight: Preflight) -> None:
    assert preflight.run(2, "--optim.lr", "-1", "--data.tokenizer", "/none") == [2, 2]
    assert "2 problems in the configuration" in preflight.said()
    assert preflight.said(1) == ""
    assert not preflight.failing.exists()


def test_a_recipe_that_only_one_node_can_read(preflight: Preflight, tmp_path: Path) -> None:
    # The path is a name in the folder that each of them is in: rank 1's tokenizer is not there.
    places = {0: {"PLACE": str(preflight.recipe.parent)}, 1: {"PLACE": str(tmp_path)}}
    assert preflight.run(
        2, "--data.tokenizer", "$PLACE/tokenizer.model", "--run.dir", str(tmp_path / "run"), variables=places
    ) == [1, 1]
    said = preflight.said()
    assert said.startswith("preflight: n2 fails; ")
    assert f"FAIL  n2: data.tokenizer (command line): {tmp_path}/tokenizer.model does not exist" in said
    assert preflight.failing.read_text() == "n2\n"
    assert list(tmp_path.rglob("run")) == []
