from __future__ import annotations

import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.preflight import storage
from tests.unit.launch.preflight.test_exchange import on_ranks


def said(**change: Any) -> dict[str, Any]:
    return {"folder": "/run", "problem": None, "seen": {}, "replaced": {}, "free": 10**12, "checkpoints": 0} | change


def on_disks(disks: dict[str, int]) -> dict[str, dict[str, Any]]:
    """What nodes say that see those of the same disk."""
    return {
        node: said(seen={other: 0.001 if disks[other] == disk else "missing" for other in disks})
        for node, disk in disks.items()
    }  # fmt: skip


class TestProbing:
    def test_nodes_of_one_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "runs" / "a"
        leaders = {"n1": 0, "n2": 1, "n3": 2}
        found = on_ranks(3, lambda exchange: storage.take_part(
            exchange, leaders, f"n{exchange.rank + 1}", folder, "7", seconds=20), limit=20)  # fmt: skip
        for each in found:
            assert each["problem"] is None
            assert set(each["seen"]) == set(each["replaced"]) == set(leaders)
            assert all(isinstance(value, float) for name in ("seen", "replaced") for value in each[name].values())
        # The parents that were made are gone, too.
        assert list(tmp_path.iterdir()) == []

    def test_parents_that_were_there_stay(self, tmp_path: Path) -> None:
        (tmp_path / "runs").mkdir()
        storage_of = on_ranks(2, lambda exchange: storage.take_part(
            exchange, {"n1": 0, "n2": 1}, f"n{exchange.rank + 1}", tmp_path / "runs" / "a" / "b", "7", seconds=20), limit=20)  # fmt: skip
        assert [each["problem"] for each in storage_of] == [None, None]
        assert [each.relative_to(tmp_path) for each in tmp_path.rglob("*")] == [Path("runs")]

    def test_rank_0_hears_out_those_who_have_a_folder(self, tmp_path: Path) -> None:
        def act(exchange: Any) -> Any:
            leaders = {"n2": 1, "n3": 2}
            if exchange.rank == 0:
                return storage.hear_out(exchange, leaders)
            return storage.take_part(exchange, leaders, f"n{exchange.rank + 1}", tmp_path / "a", "7", seconds=20)

        _, *others = on_ranks(3, act, limit=20)
        for each in others:
            assert set(each["seen"]) == set(each["replaced"]) == {"n2", "n3"}
            assert all(isinstance(value, float) for name in ("seen", "replaced") for value in each[name].values())
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_was_there_stays(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoints" / "500").mkdir(parents=True)
        (tmp_path / "checkpoints" / "set-aside-500").mkdir()
        (found,) = on_ranks(1, lambda exchange: storage.take_part(exchange, {"n1": 0}, "n1", tmp_path, "7"))
        assert found["checkpoints"] == 1
        assert found["free"] > 0
        assert [each.name for each in tmp_path.iterdir()] == ["checkpoints"]

    def test_nodes_with_a_folder_each(self, tmp_path: Path) -> None:
        found = on_ranks(2, lambda exchange: storage.take_part(
            exchange, {"n1": 0, "n2": 1}, f"n{exchange.rank + 1}", tmp_path / str(exchange.rank), "7", seconds=0.1,
        ), limit=20)  # fmt: skip
        assert [each["seen"] for each in found] == [
            {"n1": pytest.approx(0, abs=1), "n2": "missing"}, {"n1": "missing", "n2": pytest.approx(0, abs=1)}]  # fmt: skip
        assert [set(each["replaced"]) for each in found] == [{"n1"}, {"n2"}]

    def test_a_node_that_can_not_write(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        folders = [tmp_path / "run", tmp_path / "file" / "run"]
        one, other = on_ranks(2, lambda exchange: storage.take_part(
            exchange, {"n1": 0, "n2": 1}, f"n{exchange.rank + 1}", folders[exchange.rank], "7", seconds=0.1,
        ), limit=20)  # fmt: skip
        assert (one["problem"], set(one["seen"])) == (None, {"n1"})
        assert (other["problem"], other["seen"]) == ("Not a directory", {"n1": "Not a directory"})

    def test_what_a_node_that_went_silent_has_left_is_removed(self, tmp_path: Path) -> None:
        def act(exchange: Any) -> Any:
            if exchange.rank == 1:
                return storage.write(storage.probe_path(tmp_path, "7", "n2"), "x")
            return storage.take_part(exchange, {"n1": 0, "n2": 1}, "n1", tmp_path, "7")

        on_ranks(2, act)
        assert list(tmp_path.iterdir()) == []

    def test_another_node_removes_the_folder_while_this_one_tidies_up(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, scandir = tmp_path / "run", os.scandir

        def scandir_too_late(path: Any) -> Any:
            if Path(path) == folder:
                folder.rmdir()
            return scandir(path)

        monkeypatch.setattr(os, "scandir", scandir_too_late)
        (found,) = on_ranks(1, lambda exchange: storage.take_part(exchange, {"n1": 0}, "n1", folder, "7"))
        monkeypatch.undo()
        assert found["problem"] is None
        assert list(tmp_path.iterdir()) == []

    def test_old_content_is_told_from_none(self, tmp_path: Path) -> None:
        (tmp_path / "old").write_text("before")
        (tmp_path / "folder").mkdir()
        wanted = {tmp_path / name: "now" for name in ("old", "none", "folder")}
        assert {path.name: why for path, why in storage.watch(wanted, 0).items()} == {
            "old": "old", "none": "missing", "folder": "Is a directory"}  # fmt: skip

    def test_a_file_that_comes_later_is_waited_for(self, tmp_path: Path) -> None:
        later = threading.Timer(0.2, lambda: storage.write(tmp_path / "a", "now"))
        later.start()
        found = storage.watch({tmp_path / "a": "now"}, 20)[tmp_path / "a"]
        later.join()
        assert isinstance(found, float)
        assert found >= 0.1

    def test_a_failed_write_leaves_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        assert storage.write(tmp_path / "a", "x") == "Is a directory"
        assert [each.name for each in tmp_path.iterdir()] == ["a"]


class TestVerdict:
    def test_a_good_one(self) -> None:
        judged = storage.judge(on_disks({"n1": 0, "n2": 0}), 10**9, 4)
        assert judged.findings == []
        assert (
            judged.line == "/run; what one node writes the others see within 1 ms; 1.0 TB free, checkpoints take 4.0 GB"
        )

    def test_one_node(self) -> None:
        assert storage.judge(on_disks({"n1": 0}), 10**9, 1).line == "/run; 1.0 TB free, checkpoints take 1.0 GB"

    @given(st.lists(st.integers(0, 3), min_size=1, max_size=7))
    def test_who_is_on_another_disk_than_most_is_named(self, disks: list[int]) -> None:
        nodes = {f"n{number}": disk for number, disk in enumerate(disks)}
        findings = storage.judge(on_disks(nodes), None, 1).findings
        sizes = Counter(disks)
        right = next(disk for disk in disks if sizes[disk] == max(sizes.values()))
        wrong = [node for node, disk in nodes.items() if disk != right]
        if len(disks) > 2 and max(sizes.values()) == 1:
            (finding,) = findings
            assert str(finding) == ("no node sees what another writes in /run: it is on a disk of each node; choose a run.dir on "
                                    "shared storage")  # fmt: skip
        else:
            assert [finding.node for finding in findings] == wrong
            assert all("it doesn't see what n" in finding.message for finding in findings)

    def test_the_message(self) -> None:
        (finding,) = storage.judge(on_disks({"n1": 0, "n2": 1, "n3": 0}), None, 1).findings
        assert str(finding) == ("n2: it doesn't see what n1 wrote in /run: it is on a disk of the node; choose a run.dir on shared "
                                "storage")  # fmt: skip

    def test_the_others_do_not_see_it(self) -> None:
        nodes = on_disks({"n1": 0, "n2": 0, "n3": 0})
        nodes["n1"]["seen"]["n2"] = nodes["n3"]["seen"]["n2"] = "missing"
        (finding,) = storage.judge(nodes, None, 1).findings
        assert (finding.node, finding.message.split(":")[0]) == ("n2", "n1 doesn't see what it wrote in /run")

    def test_others_files_can_not_be_read(self) -> None:
        nodes = on_disks({"n1": 0, "n2": 0, "n3": 0})
        nodes["n3"]["seen"] |= {"n1": "Permission denied", "n2": "Permission denied"}
        (finding,) = storage.judge(nodes, None, 1).findings
        assert str(finding) == "n3: it can't read what n1 wrote in /run: Permission denied"

    def test_read_only_on_one_node(self) -> None:
        nodes = on_disks({"n1": 0, "n2": 0})
        nodes["n2"]["problem"] = "Read-only file system"
        for each in nodes.values():
            del each["seen"]["n2"]
        (finding,) = storage.judge(nodes, None, 1).findings
        assert str(finding) == "n2: /run can't be written: Read-only file system"

    def test_another_folder_on_one_node(self) -> None:
        nodes = on_disks({"n1": 0, "n2": 0, "n3": 1})
        nodes["n3"]["folder"] = "/tmp/run"
        (finding,) = storage.judge(nodes, None, 1).findings
        assert (
            str(finding)
            == "n3: run.dir is /tmp/run there, and /run on the other 2 nodes; name one folder on shared storage"
        )

    def test_old_content_for_too_long(self) -> None:
        nodes = on_disks({"n1": 0, "n2": 0})
        nodes["n2"]["replaced"] = {"n1": "old", "n2": 0.0}
        (finding,) = storage.judge(nodes, None, 1).findings
        assert (finding.level, str(finding)) == ("fail", "n2: 10 s after n1 has replaced a file in /run it still doesn't see the new "
                                                 "content: its file system keeps old ones too long (mount option actimeo, say)")  # fmt: skip

    @pytest.mark.parametrize(
        ("free", "there", "finding"),
        [
            (40e9, 0, None), (39e9, 0, ("warn", "39.0 GB are free in run.dir, and the checkpoints that the run keeps take 40.0 GB; "
                                        "make room, or lower checkpoint.keep")),
            (39e9, 1, None), (10e9, 9, None),
            (9e9, 0, ("fail", "9.0 GB are free in run.dir, and one checkpoint takes 10.0 GB; make room, or choose another run.dir")),
        ],
    )  # fmt: skip
    def test_room(self, free: float, there: int, finding: tuple[str, str] | None) -> None:
        nodes = {"n1": said(seen={"n1": 0.0}, free=free, checkpoints=there)}
        found = storage.judge(nodes, 10**10, 4).findings
        assert [(f.level, str(f)) for f in found] == ([] if finding is None else [finding])

    def test_what_is_needed_is_not_known(self) -> None:
        line = storage.judge(on_disks({"n1": 0}), None, 4, "org/base has no config.json that can be read").line
        assert (
            line
            == "/run; 1.0 TB free; what checkpoints need is not known: org/base has no config.json that can be read"
        )


def test_the_kept_checkpoints() -> None:
    assert storage.num_kept(2, ("1e9 tokens", "50 %"), keeps_best=True) == 6
    assert storage.num_kept(2, (), keeps_best=False) == 3
