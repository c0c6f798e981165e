from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from data_pipeline.__main__ import main

Write = Callable[[Path, Sequence[str]], Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def source(tmp_path: Path, write_jsonl: Write) -> Path:
    return write_jsonl(tmp_path / "data" / "a.jsonl", ["the dog", "", "the quick brown fox", "é"])


def test_index_then_verify(source: Path, capsys: Capture) -> None:
    assert main(["index", str(source.parent)]) == 0
    assert f"{source}: 4 documents, {source.stat().st_size} bytes, sha256 " in capsys.readouterr().out
    assert (source.parent / ".index" / "a.jsonl.json").exists()
    assert main(["verify", str(source)]) == 0
    assert f"{source}: 4 documents, 0 damaged" in capsys.readouterr().out


def test_verify_reports_every_damaged_line_of_every_file(source: Path, capsys: Capture) -> None:
    (source.parent / "b.jsonl").write_bytes(b'{"text": "x"}\n{"te\n[]\n')
    assert main(["verify", str(source.parent)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{source}: 4 documents, 0 damaged"
    assert "b.jsonl, line 2 (byte 14): is not valid JSON" in lines[1]
    assert "b.jsonl, line 3 (byte 19): is not a JSON object but list" in lines[2]
    assert lines[3].endswith("b.jsonl: 3 documents, 2 damaged")


def test_verify_notices_content_that_changed_behind_the_index(source: Path, capsys: Capture) -> None:
    import os

    main(["index", str(source)])
    stat = source.stat()
    source.write_bytes(source.read_bytes().replace(b"dog", b"cat"))
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert main(["verify", str(source)]) == 1
    assert "content changed behind the index's back" in capsys.readouterr().out


def test_stats(source: Path, tokenizer_path: Path, capsys: Capture) -> None:
    assert main(["stats", "--source", f"mine={source}", "--tokenizer", str(tokenizer_path)]) == 0
    captured = capsys.readouterr()
    row = next(line for line in captured.out.splitlines() if "mine" in line)
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells[:4] == ["mine", "4", "1", str(len("the dogthe quick brown foxé".encode()))]
    assert "encoding mine: 4/4" in captured.err


def test_peek(source: Path, tokenizer_path: Path, capsys: Capture) -> None:
    command = [
        "peek",
        "--source",
        f"a={source}:2.5",
        "--tokenizer",
        str(tokenizer_path),
        "--seq-len",
        "64",
        "--num-lanes",
        "2",
        "--lane",
        "1",
        "--step",
        "1",
    ]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.startswith("lane 1 of 2, step 1, seed 0\n── inputs 0 to ")
    assert "<BOS>the quick brown fox⟦<EOS>⟧" in out


def test_demo_makes_the_corpus_and_shows_its_counts(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "corpus"
    command = ["demo", "--out", str(out), "--max-files", "8", "--vocab-size", "400"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "400 pieces" in captured.out
    assert "heldout" in captured.out
    assert "reading the standard library: 8/8" in captured.err
    assert main(["verify", str(out / "code"), str(out / "prose")]) == 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("index", "no path is given"),
        ("index {tmp}/none", "none does not exist"),
        ("verify {tmp}", "holds no .jsonl file"),
        ("demo --vocab-size 3 --out {tmp}/c", "vocab size 3 is too small"),
        ("stats --source a --tokenizer {tokenizer}", "--source 'a' is not NAME=PATH"),
        ("peek --source a={a} --tokenizer {tmp}/none --seq-len 1", "seq_len: 1 tokens is too short"),
        ("peek --source a={a} --tokenizer {tmp}/none --seq-len 1", "tokenizer: "),
        ("peek --source a={a}:0 --tokenizer {tokenizer}", "sources.a.weight: 0.0 is not above 0"),
        ("peek --source a={a} --tokenizer {tokenizer} --lane 8", "--lane 8 is none of the 8 lanes; give 0 to 7"),
        ("peek --source a={a} --tokenizer {tokenizer} --step -1", "--step -1 is below 0"),
        ("peek --source a={a} --tokenizer {tokenizer} --text-field body", "has no field 'body'"),
    ],
)
def test_bad_requests_exit_with_2(
    source: Path, tmp_path: Path, tokenizer_path: Path, capsys: Capture, command: str, message: str
) -> None:
    arguments = command.format(tmp=tmp_path, a=source, tokenizer=tokenizer_path).split()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_unknown_command_and_help() -> None:
    root = Path(__file__).parents[3]
    run = [sys.executable, "-m", "data_pipeline"]
    unknown = subprocess.run([*run, "nope"], cwd=root, capture_output=True, text=True, check=False)
    assert unknown.returncode == 2
    shown = subprocess.run([*run, "peek", "--help"], cwd=root, capture_output=True, text=True, check=False)
    assert shown.returncode == 0
    assert "Which optimizer step, from 0." in shown.stdout
