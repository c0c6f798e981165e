from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from launch.preflight import gpus

HEALTHY = """\
GPU-a, NVIDIA H100 80GB HBM3, 550.54.15, 81559, 3, 0, [N/A]
GPU-b, NVIDIA H100 80GB HBM3, 550.54.15, 81559, 3, 0, [N/A]"""
REMAPPED = "GPU-a, 0, 0\nGPU-b, 0, 0"


@pytest.fixture(autouse=True)
def on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a program of that name on PATH, with these answers."""

    def make(answer: str, remapped: str = REMAPPED, code: int = 0, script: str = "") -> None:
        (tmp_path / "gpus").write_text(answer)
        (tmp_path / "rows").write_text(remapped)
        program = tmp_path / "nvidia-smi"
        program.write_text(
            f'#!/bin/sh\n{script}\ncase "$1" in --query-gpu=*) cat {tmp_path}/gpus ;; *) cat {tmp_path}/rows ;; esac\nexit {code}\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return make


class TestLooking:
    def test_healthy_ones(self, nvidia_smi: Any) -> None:
        nvidia_smi(HEALTHY)
        assert gpus.look() == {"problem": None, "is_absent": False, "gpus": [
            {"uuid": uuid, "name": "NVIDIA H100 80GB HBM3", "driver": "550.54.15", "memory": 81559.0, "used": 3.0,
             "uncorrected": 0.0, "is_pending": False, "is_remap_failed": False} for uuid in ("GPU-a", "GPU-b")
        ]}  # fmt: skip

    def test_sick_ones(self, nvidia_smi: Any) -> None:
        nvidia_smi("GPU-a, T4, 1, 16000, [N/A], 2, Yes\nGPU-b, T4, 1, [N/A], 8000, [Not Supported], No", "GPU-b, 1, 1")
        first, second = gpus.look()["gpus"]
        assert (first["used"], first["uncorrected"], first["is_pending"], first["is_remap_failed"]) == (
            None,
            2,
            True,
            False,
        )
        assert (second["memory"], second["uncorrected"], second["is_pending"], second["is_remap_failed"]) == (
            None,
            None,
            True,
            True,
        )

    def test_a_gpu_without_remapped_rows(self, nvidia_smi: Any) -> None:
        nvidia_smi(HEALTHY, 'Field "remapped_rows.pending" is not a valid field to query.')
        assert len(gpus.look()["gpus"]) == 2

    def test_none_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert gpus.look() == {"gpus": [], "problem": None, "is_absent": True}

    @pytest.mark.parametrize(
        ("make", "problem"),
        [
            ({"script": "exec sleep 60"}, "nvidia-smi has not answered within 0.3 s"),
            ({"script": "echo 'Failed to initialize NVML: Driver/library version mismatch' >&2", "code": 18},
             "nvidia-smi fails: Failed to initialize NVML: Driver/library version mismatch"),
            ({"code": 9}, "nvidia-smi fails: exit code 9"),
            ({"answer": "GPU-a, H100"}, "nvidia-smi fails: unexpected answer 'GPU-a, H100'"),
        ],
    )  # fmt: skip
    def test_trouble(self, nvidia_smi: Any, make: dict[str, Any], problem: str) -> None:
        nvidia_smi(**{"answer": ""} | make)
        assert gpus.look(seconds=0.3 if "exec" in make.get("script", "") else 20) == {
            "gpus": [],
            "problem": problem,
            "is_absent": False,
        }

    def test_a_job_without_gpus_on_a_node_that_has_some(self, nvidia_smi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
        nvidia_smi("No devices were found", code=6)
        assert gpus.look() == {"gpus": [], "problem": None, "is_absent": False}
        monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
        assert gpus.look()["problem"] == "nvidia-smi fails: No devices were found"

    def test_on_cpus_nothing_is_asked(self, nvidia_smi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
        nvidia_smi(HEALTHY, code=9)
        assert gpus.look() == {"gpus": [], "problem": None, "is_absent": False}


def gpu(uuid: str, **change: Any) -> dict[str, Any]:
    return {"uuid": uuid, "name": "H100", "driver": "550", "memory": 81920.0, "used": 0.0, "uncorrected": 0.0,
            "is_pending": False, "is_remap_failed": False} | change  # fmt: skip


def answer(*shown: dict[str, Any], problem: str | None = None, is_absent: bool = False) -> dict[str, Any]:
    return {"gpus": list(shown), "problem": problem, "is_absent": is_absent}


class TestVerdict:
    def test_every_rank_sees_all_or_its_own(self) -> None:
        both = answer(gpu("a"), gpu("b"))
        judged = gpus.judge({"n1": [both, both], "n2": [answer(gpu("c")), answer(gpu("d"))]})
        assert (judged.line, judged.findings) == ("2 x H100 of 80 GiB per node, driver 550", [])

    def test_without_gpus(self) -> None:
        judged = gpus.judge({"n1": [answer(is_absent=True)], "n2": [answer()]})
        assert (judged.line, judged.findings) == ("none are shown: ranks compute on CPUs", ())

    @pytest.mark.parametrize(
        ("second", "message"),
        [
            ([answer(gpu("c")), answer(gpu("c"))], ("fail", "n2: has 1 GPU(s), and 2 rank(s) run there")),
            ([answer()], ("fail", "n2: has 0 GPU(s), and 1 rank(s) run there")),
            ([answer(is_absent=True)], ("fail", "n2: has no nvidia-smi, and 1 rank(s) run there")),
            ([answer(problem="nvidia-smi has not answered within 20 s")], ("fail", "n2: nvidia-smi has not answered within 20 s")),
            ([answer(gpu("c", name="A100"))], ("warn", "n2: its GPUs are A100, of the other 2 nodes H100")),
            ([answer(gpu("c", driver="535"))], ("warn", "n2: its driver is 535, of the other 2 nodes 550")),
            ([answer(gpu("c", memory=40960.0))], ("warn", "n2: its GPU memory is 40 GiB, of the other 2 nodes 80 GiB")),
            ([answer(gpu("c", uncorrected=3.0))], ("fail", "n2: c has 3 uncorrected memory error(s); have it reset")),
            ([answer(gpu("c", is_pending=True))],
             ("warn", "n2: c has damaged memory that is taken out at its next reset; have it reset")),
            ([answer(gpu("c", is_pending=True, is_remap_failed=True))],
             ("fail", "n2: c could not remap a damaged row of its memory; have it replaced")),
            ([answer(gpu("c", used=10240.0))],
             ("warn", "n2: c: 10.0 of 80 GiB are in use by other processes (nvidia-smi shows them)")),
        ],
    )  # fmt: skip
    def test_one_that_is_different(self, second: list[dict[str, Any]], message: tuple[str, str]) -> None:
        judged = gpus.judge({"n1": [answer(gpu("a"))], "n2": second, "n3": [answer(gpu("e"))]})
        assert [(f.level, str(f)) for f in judged.findings] == [message]

    def test_what_is_not_said_is_no_fault(self) -> None:
        vague = gpu("a", memory=None, used=None, uncorrected=None)
        assert gpus.judge({"n1": [answer(vague)], "n2": [answer(vague | {"uuid": "b"})]}).findings == []
