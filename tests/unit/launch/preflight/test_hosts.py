from __future__ import annotations

import resource
from typing import Any

import pytest

from launch.preflight import hosts
from launch.preflight.versions import PACKAGES, judge, look, source_hash

GOOD = {"memory": 100 * 10**9, "shared_memory": 10**10, "open_files": 65536}


class TestHosts:
    def test_this_machine(self) -> None:
        said = hosts.look()
        assert said["memory"] > 0
        assert said["open_files"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def test_a_good_one(self) -> None:
        judged = hosts.judge({"n1": GOOD, "n2": GOOD | {"memory": 90e9}}, {"n1": 8, "n2": 8}, 1e9)
        assert (judged.line, judged.findings) == ("90.0 GB of memory free, copies of checkpoints need 8.0 GB", [])
        assert hosts.judge({"n1": GOOD}, {"n1": 8}, None).line == "100.0 GB of memory free"

    @pytest.mark.parametrize(
        ("change", "level", "message"),
        [
            ({"memory": 7.9e9}, "fail", "n2: 7.9 GB of memory are free, and copies of checkpoints need 8.0 GB; use more nodes, ask "
             "for more memory (--mem), or set checkpoint.background = false"),
            ({"shared_memory": 2**26}, "warn", "n2: /dev/shm has 67.1 MB free, which is little for 8 ranks; give the container more"),
            ({"shared_memory": None}, "warn", "n2: there is no /dev/shm, which is little for 8 ranks; give the container more"),
            ({"open_files": 300}, "warn", "n2: a process may open 300 files, which is little for 16 ranks; ulimit -n 320 (or srun "
             "--propagate=NOFILE) raises it"),
        ],
    )  # fmt: skip
    def test_a_bad_one(self, change: dict[str, Any], level: str, message: str) -> None:
        judged = hosts.judge({"n1": GOOD, "n2": GOOD | change}, {"n1": 8, "n2": 8}, 1e9)
        assert [(f.level, str(f)) for f in judged.findings] == [(level, message)]

    def test_no_limit_is_enough(self) -> None:
        assert hosts.judge({"n1": GOOD | {"open_files": resource.RLIM_INFINITY}}, {"n1": 8}, None).findings == []


class TestVersions:
    HAVE = {"python": "3.11.2", "torch": "2.13.0", "safetensors": "0.6.2", "triton": "none"}  # noqa: RUF012

    def test_this_environment(self) -> None:
        said = look()
        assert set(PACKAGES) < set(said)
        assert said["torch"][0].isdigit()
        assert said["this repository"] == source_hash()

    def test_the_source(self, tmp_path: Any) -> None:
        (tmp_path / "training").mkdir()
        (tmp_path / "training" / "a.py").write_text("x = 1\n")
        before = source_hash(tmp_path / ".")
        (tmp_path / "training" / "a.py").write_text("x = 2\n")
        assert source_hash(tmp_path / "training" / "..") != before

    def test_all_the_same(self) -> None:
        judged = judge({"n1": self.HAVE, "n2": self.HAVE})
        assert (judged.line, judged.findings) == ("python 3.11.2, torch 2.13.0", [])

    @pytest.mark.parametrize(
        ("change", "level", "message"),
        [
            ({"safetensors": "0.5.0"}, "fail", "n2: safetensors 0.5.0, the other 3 nodes 0.6.2"),
            ({"safetensors": "none"}, "fail", "n2: has no safetensors, the other 3 nodes 0.6.2"),
            ({"triton": "3.3"}, "warn", "n2: triton 3.3, the other 3 nodes none"),
            ({"NCCL": "2.27"}, "fail", "n2: NCCL 2.27, the other 3 nodes none"),
        ],
    )
    def test_one_that_is_different(self, change: dict[str, str], level: str, message: str) -> None:
        judged = judge({"n1": self.HAVE, "n2": self.HAVE | change, "n3": self.HAVE, "n4": self.HAVE})
        assert [(f.level, str(f)) for f in judged.findings] == [(level, message)]
