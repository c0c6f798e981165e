from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.__main__ import main
from data_pipeline.commands.resume_check import legs_table, verdict
from data_pipeline.commands.tables import print_table
from data_pipeline.stream.resume_proof import Leg, Mismatch, ResumeProof

LEGS = [Leg(2, 0, 3, 40, 16, 1.234, 0.0456, True), Leg(1, 3, 5, 16, 0, 0.5, 0.01, False)]


def proof(**changed: object) -> ResumeProof:
    values = {"rows": 40, "legs": LEGS, "mismatches": [], "rows_repeated": 0, "rows_lost": 0, "rows_compared": 56}
    return ResumeProof(**{**values, "seconds": 2.0, **changed})  # type: ignore[arg-type]


def test_legs(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(legs_table(proof()))
    rows = [
        line.split()
        for line in capsys.readouterr().out.splitlines()
        if line.split()[:1] and line.split()[0][0].isdigit()
    ]
    assert rows == [
        ["1", "killed", "2", "0", "40", "16", "3", "1.23", "0.046"],
        ["2", "done", "1", "3", "16", "0", "5", "0.50", "0.010"],
    ]


def test_a_proof_that_holds() -> None:
    assert verdict(proof()) == [
        "56 rows of 2 legs compared with the 40 rows of an uninterrupted run, in 2.0 s",
        "PROVEN: all are the same, none was repeated or lost after a resume",
    ]


def test_a_proof_that_fails_says_where() -> None:
    lines = verdict(proof(mismatches=[Mismatch(1, 4, row) for row in range(12)], rows_lost=3))
    assert lines[1] == "FAILED: 12 differ, 0 repeated, 3 lost"
    assert lines[2] == "  leg 2: row 4 of step 0 differs"
    assert len(lines) == 2 + 10 + 1 + 1
    assert lines[-2] == "  and 2 more"
    assert "please report it" in lines[-1]
    assert verdict(proof(rows_repeated=1))[1] == "FAILED: 0 differ, 1 repeated, 0 lost"


@pytest.fixture
def command(tmp_path: Path, tokenizer_path: Path) -> list[str]:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"the dog {i}" * (i % 5 + 1)}) + "\n" for i in range(30)))
    settings = ["--tokenizer", str(tokenizer_path), "--seq-len", "16", "--num-lanes", "2", "--workers", "0"]
    return ["verify-resume", str(path), *settings]


@pytest.mark.dist
def test_of_real_processes(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--rows", "12", "--restarts", "1", "--world-sizes", "1"]) == 0
    out = capsys.readouterr().out
    assert "2 rows in a step, seed 17, seq_len 16" in out
    assert "PROVEN: all are the same" in out
    assert any(line.split()[:3] == ["1", "killed", "1"] for line in out.splitlines())


def test_what_cannot_be_proven(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--world-sizes", "1", "3"]) == 2
    assert "error: the world sizes [3] do not divide the global batch of 2 rows" in capsys.readouterr().err
    assert main([*command, "--rows", "0"]) == 2
    assert "0 rows and 5 restarts prove nothing" in capsys.readouterr().err


def test_a_failed_proof_exits_with_1(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, object] = {}

    def prove(config: object, **arguments: object) -> ResumeProof:
        told.update(arguments)
        return proof(rows_lost=1)

    monkeypatch.setattr("data_pipeline.stream.resume_proof.prove", prove)
    assert main([*command, "--restarts", "7", "--chance", "3"]) == 1
    assert "FAILED: 0 differ, 0 repeated, 1 lost" in capsys.readouterr().out
    assert (told["rows"], told["restarts"], told["world_sizes"], told["rng_seed"]) == (50, 7, None, 3)
