from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.preflight import command
from launch.preflight.report import Report
from launch.preflight.verdict import Judgement, fail
from training.world import World

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher's variables, and none of those that the command sets are left behind."""
    environment = {name: value for name, value in os.environ.items()
                   if name not in LAUNCHERS and not name.startswith("SLURM")}  # fmt: skip
    monkeypatch.setattr(os, "environ", environment | {"SLURMD_NODENAME": "n1"})


class TestAlone:
    """A plain process is a world of one, this machine."""

    def test_a_healthy_machine(self, tiny_recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        report, run = tmp_path / "deep" / "report.json", tmp_path / "run"
        run.mkdir()
        code = main(["preflight", str(tiny_recipe), "--train.placement", "replicated", "--report", str(report), "--run.dir",
                     str(run), "--local_rank=0"])  # fmt: skip
        printed = capfd.readouterr()
        assert code == 0, printed
        assert printed.out.startswith("preflight: healthy; 1 node(s) (n1), 1 rank(s), ")
        assert "wires     nothing to measure: one rank" in printed.out
        content = json.loads(report.read_text())
        assert (content["code"], content["nodes"]) == (0, ["n1"])
        assert list(content["parts"]) == ["starting", "waiting for all ranks", "looking at nodes", "comparing clocks", "shared storage",
                                          "wires"]  # fmt: skip
        assert list(run.iterdir()) == []

    def test_a_wrong_configuration(self, tiny_recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        assert (
            main(["preflight", str(tiny_recipe), "--optim.lr", "-1", "--ds_config", str(tmp_path / "none.json")]) == 2
        )
        printed = capfd.readouterr()
        assert printed.out == ""
        assert "2 problems in the configuration" in printed.err
        assert f"--ds_config {tmp_path}/none.json: no such file" in printed.err

    def test_a_recipe_that_is_not_there(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert main(["preflight", "/none.toml"]) == 2
        assert "--recipe /none.toml: no such file" in capfd.readouterr().err

    @pytest.mark.parametrize("limit", ["0", "-1", "nan"])
    def test_no_patience(self, tiny_recipe: Path, capfd: pytest.CaptureFixture[str], limit: str) -> None:
        assert main(["preflight", str(tiny_recipe), "--limit", limit]) == 2
        assert capfd.readouterr().err == f"--limit {limit}: must be greater than 0\n"

    def test_a_world_that_can_not_be(self, tiny_recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
        os.environ.update(RANK="0", WORLD_SIZE="2")
        assert main(["preflight", str(tiny_recipe)]) == 2
        assert "RANK and WORLD_SIZE are set but LOCAL_RANK, MASTER_ADDR, MASTER_PORT not" in capfd.readouterr().err

    def test_rank_0_is_waited_for_longer_than_it_waits_for_others(
        self, tiny_recipe: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from training.ranks import fabric

        def refuse(world: World, seconds: float) -> None:
            raise fabric.Unreachable(f"rank {world.rank} tries for {seconds:g} s")

        monkeypatch.setattr(fabric, "open_store", refuse)
        os.environ.update(
            RANK="1", WORLD_SIZE="2", LOCAL_RANK="0", LOCAL_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="1"
        )
        assert main(["preflight", str(tiny_recipe), "--limit", "20"]) == 1
        assert capfd.readouterr().err == "preflight: n1: rank 1: rank 1 tries for 60 s\n"

    def test_a_port_that_is_taken(self, tiny_recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
        import socket

        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            os.environ.update(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            assert main(["preflight", str(tiny_recipe), "--limit", "3"]) == 1
        printed = capfd.readouterr().err
        assert f"preflight: n1: rank 0: rank 0 can't be met at 127.0.0.1:{port}: " in printed
        assert printed.rstrip().endswith("; set MASTER_ADDR or MASTER_PORT")


class TestPublishing:
    SICK = Report(judgements=[Judgement(check="x", line="y", findings=[fail("a", "n2"), fail("b")])], nodes=["n1", "n2"], ranks=2,
                  seconds=1)  # fmt: skip
    WELL = Report(judgements=[], nodes=["n1"], ranks=1, seconds=1)

    def test_failing_nodes_are_a_line_each(self, tmp_path: Path) -> None:
        options = argparse.Namespace(failing=tmp_path / "a" / "failing", report=None)
        assert command.publish(self.SICK, options) == 1
        assert options.failing.read_text() == "n2\n"
        assert command.publish(self.WELL, options) == 0
        assert options.failing.read_text() == ""

    @pytest.mark.parametrize("option", ["failing", "report"])
    def test_a_file_that_can_not_be_written(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
    ) -> None:
        (tmp_path / "file").touch()
        options = argparse.Namespace(**{"failing": None, "report": None} | {option: tmp_path / "file" / "x"})
        assert command.publish(self.WELL, options) == 1
        printed = capsys.readouterr()
        assert printed.out.startswith("preflight: healthy")
        assert printed.err == f"preflight: --{option} {tmp_path}/file/x can't be written: File exists\n"
