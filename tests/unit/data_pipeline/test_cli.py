from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from data_pipeline.__main__ import COMMANDS, main
from data_pipeline.commands import peek
from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.encoding.loading import load_tokenizer
from data_pipeline.sources import jsonl
from data_pipeline.stream.token_stream import TokenStream
from tests.permissions import locked

Write = Callable[[Path, Sequence[str]], Path]
Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[3]
TEXTS = ["the dog", "", "the quick brown fox", "é"]


@pytest.fixture
def source(tmp_path: Path, write_jsonl: Write) -> Path:
    return write_jsonl(tmp_path / "data" / "a.jsonl", TEXTS)


@pytest.fixture
def recipe(source: Path, tokenizer_path: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'[run]\nseed = 5\n[train]\nglobal_batch_rows = 2\n[data]\ntokenizer = "{tokenizer_path}"\nseq_len = 16\n'
        '[data.sources.mine]\npath = "data/a.jsonl"\n'
    )
    return path


def cells(out: str, name: str) -> list[str]:
    """The cells of the table row that begins with `name`."""
    row = next(line for line in out.splitlines() if line.strip().startswith(name))
    return row.strip()[len(name) :].split()


def test_index_shows_shards_and_totals(source: Path, write_jsonl: Write, capsys: Capture) -> None:
    write_jsonl(source.parent / "b.jsonl", ["x"] * 3)
    assert main(["index", f"mine={source.parent}", "--workers", "0"]) == 0
    captured = capsys.readouterr()
    assert [line.split()[:3] for line in captured.out.splitlines() if ".jsonl" in line] == [
        ["mine", "a.jsonl", "4"],
        ["mine", "b.jsonl", "3"],
    ]
    total = [line.split() for line in captured.out.splitlines() if line.split()[:1] == ["mine"]][-1]
    assert total[1:3] == ["2", "7"]
    assert "indexing mine: " in captured.err
    assert list((source.parent / ".index").glob("a.jsonl*"))
    # The indexes are kept: nothing is done again.
    assert main(["index", f"mine={source.parent}"]) == 0
    assert capsys.readouterr().err == ""


def test_index_names_files_that_it_does_not_read(source: Path, capsys: Capture) -> None:
    command = ["index", str(source.parent), "--workers", "0"]
    assert main(command) == 0
    assert "not read" not in capsys.readouterr().out
    for number in range(6):
        (source.parent / f"{number}.json").touch()
    (source.parent / "LICENSE.txt").touch()
    assert main(command) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"not read in {source.parent}: 0.json, 1.json, 2.json, 3.json, 4.json and 2 more"
    assert main(["index", str(source), "--workers", "0"]) == 0
    assert "not read" not in capsys.readouterr().out


def test_verify_reports_every_damage_of_every_file(source: Path, recipe: Path, capsys: Capture) -> None:
    assert main(["verify", str(recipe), "--workers", "0"]) == 0
    captured = capsys.readouterr()
    assert "nothing is damaged" in captured.out
    assert "verifying mine: " in captured.err
    (source.parent / "b.jsonl").write_bytes(b'{"text": "x"}\n{"te\n{"body": 1}\n')
    assert main(["verify", str(source.parent)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "b.jsonl, line 2 (byte 14) is not valid JSON" in lines[0]
    assert "b.jsonl, line 3 (byte 19) has no field 'text'; set text_field to one of its fields: body" in lines[1]
    assert [line.split()[1:3] + line.split()[-1:] for line in lines if ".jsonl  " in line] == [
        ["a.jsonl", "4", "0"],
        ["b.jsonl", "3", "2"],
    ]
    assert lines[-1] == "2 damages"


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_verify_says_that_there_is_nothing(tmp_path: Path, capsys: Capture, content: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    assert main(["verify", str(tmp_path), "--workers", "0"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f"at {tmp_path} holds no documents; give it some, or leave it out")
    assert lines[-1] == "1 damage"


def test_verify_says_that_a_table_has_no_rows(tmp_path: Path, capsys: Capture) -> None:
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert main(["verify", str(tmp_path), "--workers", "0"]) == 1
    assert " holds no documents; give it some, or leave it out" in capsys.readouterr().out


def test_verify_asks_for_the_fields_of_the_kind(source: Path, capsys: Capture) -> None:
    assert main(["verify", str(source), "--kind", "prompt", "--prompt-field", "q"]) == 1
    assert "has no field 'q'; set prompt_field to one of its fields: text" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        ("text", {"text": None}, "line 1 (byte 0) has NoneType in the field 'text', where text is needed"),
        ("prompt", {"prompt": 5, "response": "a"}, "line 1 (byte 0) has int in the field 'prompt'"),
        ("alpaca", {"instruction": "a", "output": " "}, "line 1 (byte 0) has an empty response in the field 'output'"),
        ("chat", {"messages": [{"content": "a"}]}, 'line 1 (byte 0) has a message without "role"'),
    ],
)
def test_verify_finds_what_the_run_refuses(
    kind: str, record: object, message: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    assert main(["verify", str(tmp_path), "--kind", kind, "--workers", "0"]) == 1
    assert message in capsys.readouterr().out


def test_verify_reads_the_tokens_too(recipe: Path, capsys: Capture) -> None:
    assert main(["tokenize", str(recipe), "--workers", "0"]) == 0
    assert main(["verify", str(recipe), "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert any(line.split()[:1] == ["tokens"] and line.split()[-1] == "0" for line in out.splitlines())
    (path,) = (recipe.parent / "data" / ".index" / "tokens").glob("*/*.tokens")
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    assert main(["verify", str(recipe), "--workers", "0"]) == 1
    out = capsys.readouterr().out
    assert f"{path} is not as it was written (document 0 in it); the next run makes it again" in out


def test_stats_of_a_recipe(recipe: Path, tokenizer_path: Path, capsys: Capture, tmp_path: Path) -> None:
    picture = tmp_path / "lengths.png"
    assert main(["stats", str(recipe), "--workers", "0", "--picture", str(picture)]) == 0
    captured = capsys.readouterr()
    lengths = [len(load_tokenizer(tokenizer_path).encode(text)) + 2 for text in TEXTS if text]
    assert cells(captured.out, "documents") == ["4"]
    assert cells(captured.out, "empty") == ["1"]
    assert cells(captured.out, "bytes of text") == [str(len("".join(TEXTS).encode()))]
    assert cells(captured.out, "tokens ") == [str(sum(lengths))]
    assert cells(captured.out, "longest") == [str(max(lengths))]
    assert cells(captured.out, "steps of 2 rows in an epoch") == [f"{sum(lengths) / 32:,.1f}"]
    assert "lengths of mine" in captured.out
    assert "encoding mine: 4/4 documents" in captured.err
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_stats_says_what_the_run_would_refuse(source: Path, tokenizer_path: Path, capsys: Capture) -> None:
    source.write_bytes(source.read_bytes() + b'{"te\n[]\n')
    assert main(["stats", str(source), "--tokenizer", str(tokenizer_path), "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert cells(out, "bad records") == ["2"]
    assert "a.jsonl, line 5" in out
    assert "The run would stop at a bad record of a: " in out


def test_stats_of_a_sample_says_so(recipe: Path, capsys: Capture) -> None:
    assert main(["stats", str(recipe), "--workers", "0", "--sample", "2"]) == 0
    out = capsys.readouterr().out
    assert "mine (from 2)" in out
    assert "Estimates from a sample" in out
    assert cells(out, "documents") == ["4"]


def test_peek_is_the_row_of_the_run(recipe: Path, source: Path, tokenizer_path: Path, capsys: Capture) -> None:
    assert main(["peek", str(recipe), "--lane", "1", "--step", "2", "--ids"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{recipe}: row 1 of 2, step 2 (seed 5, seq_len 16)"
    config = DataConfig(sources={"mine": SourceConfig(path=str(source))}, tokenizer=tokenizer_path, seq_len=16)
    with TokenStream(config, num_lanes=2, lanes=range(2), seed=5) as stream:
        row = [next(stream) for _ in range(6)][5]
    ids = [int(one) for line in lines if line.startswith("  ") and line.split()[0].isdigit() for one in line.split()]
    assert ids == row.input_ids.tolist()
    assert sum(line.startswith("── mine ") for line in lines) == len(row.documents)
    assert sum("a.jsonl, line " in line for line in lines) == len(row.documents)


def test_peek_into_an_epoch(recipe: Path, capsys: Capture) -> None:
    assert main(["peek", str(recipe), "--epoch", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "step 0 from the beginning of epoch 3" in lines[0]
    assert ", epoch 3, inputs 0 to " in lines[1]


def test_peek_shows_a_prompt_its_response_and_the_padding(
    tmp_path: Path, tokenizer_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "pairs.jsonl"
    tokenizer = load_tokenizer(tokenizer_path)
    length = 2 + len(tokenizer.encode("the lazy dog sleeps on"))
    path.write_text(json.dumps({"prompt": "the lazy dog", "response": " sleeps on"}) + "\n")
    command = [
        "peek",
        str(path),
        "--kind",
        "prompt",
        "--tokenizer",
        str(tokenizer_path),
        "--seq-len",
        str(2 * length - 1),
    ]
    assert main([*command, "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert "⟦<BOS>the lazy dog⟧ sleeps on<EOS>" in out
    assert f"── padding, inputs {length} to {2 * length - 2} ──" in out


def test_tokenize_makes_what_the_run_reads(recipe: Path, capsys: Capture) -> None:
    assert main(["tokenize", str(recipe), "--workers", "0"]) == 0
    captured = capsys.readouterr()
    assert cells(captured.out, "mine")[:2] == ["4", "3"]
    assert "encoding mine: 4/4 documents" in captured.err
    assert f"{recipe.parent / 'data' / '.index' / 'tokens'} holds " in captured.out
    assert "only where its recipe says token_cache = true" in captured.out
    assert main(["tokenize", str(recipe), "--workers", "0"]) == 0
    assert "encoding" not in capsys.readouterr().err


def test_demo_makes_the_corpus_and_shows_its_counts(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "corpus"
    command = ["demo", "--out", str(out), "--max-files", "8", "--vocab-size", "400"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "400" in captured.out
    assert "heldout" in captured.out
    assert "reading the standard library: 8/8" in captured.err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("index", "nothing to read: name a recipe"),
        ("index {tmp}/none", "none does not exist"),
        ("verify {tmp}", "holds no .jsonl"),
        ("demo --vocab-size 3 --out {tmp}/c", "vocab size 3 is too small"),
        ("stats {a}", "--tokenizer is missing"),
        ("stats {recipe} --sample 0", "--sample 0 is below 1"),
        ("stats {recipe} --picture x.gif", "--picture x.gif is no .png"),
        ("stats {recipe} --picture {tmp}/none/x.png", "is no .png, .svg or .pdf in a folder that exists"),
        ("peek {a} --tokenizer {tmp}/none --seq-len 1", "seq_len: 1 tokens is too short"),
        ("peek {a} --tokenizer {tmp}/none --seq-len 1", "tokenizer: "),
        ("peek {recipe} --lane 2", "--lane 2 is none of the 2 rows of a batch; give 0 to 1"),
        ("peek {recipe} --step -1", "--step -1 is below 0"),
        ("peek {recipe} --epoch -1", "--epoch -1 is below 0"),
        ("peek {a} --tokenizer {tokenizer} --text-field body", "has no field 'body'"),
        ("pek {recipe}", "'pek' is no command; did you mean peek?"),
        ("", "name a command"),
    ],
)
def test_bad_requests_exit_with_2(
    source: Path, recipe: Path, tmp_path: Path, tokenizer_path: Path, capsys: Capture, command: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    values = {"tmp": tmp_path / "empty", "a": source, "tokenizer": tokenizer_path, "recipe": recipe}
    assert main(command.format(**values).split()) == 2
    error = capsys.readouterr().err
    assert "error: " in error
    assert message in error


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main([name, "--help"])
    out = capsys.readouterr().out
    assert f"usage: python -m data_pipeline {name} " in out
    assert name == "demo" or f"$ python -m data_pipeline {name} recipes/" in out


def test_unknown_options_exit_with_2(capsys: Capture) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["peek", "recipe.toml", "--lan", "3"])
    assert "--lane" in capsys.readouterr().err


def test_the_list_of_commands(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)
    assert max(map(len, out.splitlines())) <= 110


def test_output_may_be_cut_off_by_its_reader(recipe: Path) -> None:
    main(["index", str(recipe)])
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "data_pipeline", "peek", str(recipe), "--step", "1"]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 128 + signal.SIGPIPE


def test_the_picture_is_drawn_also_if_nobody_reads_to_the_end(recipe: Path, tmp_path: Path) -> None:
    picture = tmp_path / "lengths.png"
    command = [sys.executable, "-m", "data_pipeline", "stats", str(recipe), "--workers", "0", "--picture", str(picture)]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert done.returncode == 128 + signal.SIGPIPE, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_numbers_of_the_mixture(
    source: Path, write_jsonl: Write, tokenizer_path: Path, tmp_path: Path, capsys: Capture
) -> None:
    other = write_jsonl(tmp_path / "data" / "b.jsonl", ["the dog"] * 50)
    recipe = tmp_path / "two.toml"
    recipe.write_text(
        f'[train]\nglobal_batch_rows = 4\n[data]\ntokenizer = "{tokenizer_path}"\nseq_len = 16\n'
        f'[data.sources.a]\npath = "{source}"\nweight = 1\n[data.sources.b]\npath = "{other}"\nweight = 3\n'
    )
    assert main(["stats", str(recipe), "--workers", "0"]) == 0
    out = capsys.readouterr().out
    tokens = np.array([int(cell) for cell in cells(out, "tokens ")])
    assert cells(out, "part of the mixture") == ["25.0", "%", "75.0", "%"]
    assert cells(out, "steps of 4 rows in an epoch") == [
        f"{steps:,.1f}" for steps in tokens / (np.array([0.25, 0.75]) * 64)
    ]


def test_stats_says_when_examples_are_too_long_or_a_source_is_empty(
    tmp_path: Path, tokenizer_path: Path, capsys: Capture
) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "the", "response": " dog" * 99}) + "\n")
    command = ["stats", str(tmp_path / "pairs.jsonl"), "--kind", "prompt", "--tokenizer", str(tokenizer_path)]
    assert main([*command, "--seq-len", "32", "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert cells(out, "longer than 32: refused") == ["1"]
    assert 'The run would refuse to start, as examples of pairs have more than 32 tokens: set too_long = "drop"' in out
    assert "No tokens in pairs: the run would refuse to start" in out
    assert main([*command, "--seq-len", "32", "--workers", "0", "--too-long", "cut"]) == 0
    out = capsys.readouterr().out
    assert cells(out, "longer than 32: cut") == ["1"]
    assert cells(out, "fill of rows of 32") == ["100.00", "%"]
    assert "would refuse" not in out


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_may_be_stopped(name: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def stopped() -> int:
        """Be stopped."""
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, name, stopped)
    assert main([name]) == 130
    kept = "; what was finished is kept, and the same command goes on from there"
    assert capsys.readouterr().err == f"stopped{kept if name in ('index', 'tokenize') else ''}\n"


def test_a_command_may_be_terminated(tmp_path: Path) -> None:
    fifo = tmp_path / "recipe.toml"
    os.mkfifo(fifo)
    command = [sys.executable, "-m", "data_pipeline", "verify", str(fifo)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # Opened when the command opens its recipe, which then waits for what is written.
    with fifo.open("w"):
        process.terminate()
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (128 + signal.SIGTERM, "", "stopped\n")


def test_verify_reads_no_tokens_of_other_data(
    recipe: Path, tokenizer_path: Path, write_jsonl: Write, tmp_path: Path, capsys: Capture
) -> None:
    cache, other = ["--cache-dir", str(tmp_path / "cache"), "--workers", "0"], write_jsonl(tmp_path / "b.jsonl", ["x"])
    assert main(["tokenize", str(other), "--tokenizer", str(tokenizer_path), *cache]) == 0
    (path,) = (tmp_path / "cache" / "tokens").glob("*/*.tokens")
    path.write_bytes(b"")
    assert main(["verify", str(recipe), *cache]) == 0
    assert main(["verify", str(other), *cache]) == 1
    assert f"{path} is not as it was written" in capsys.readouterr().out


def test_peek_reads_a_file_once_to_name_lines(
    source: Path, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    calls: list[int] = []
    lines_at = jsonl.lines_at
    monkeypatch.setattr(jsonl, "lines_at", lambda file, starts: calls.append(1) or lines_at(file, starts))
    monkeypatch.setattr(peek, "_LONG_ROW", 64)
    command = ["peek", str(source), "--tokenizer", str(tokenizer_path), "--seq-len", "64", "--workers", "0"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert captured.out.count("a.jsonl, line ") > len(calls) == 1
    assert "reading a long row: 1/1 rows" in captured.err


@pytest.mark.parametrize("prefix", ["", "a="])
def test_paths_that_cannot_be_looked_at(prefix: str, tmp_path: Path, capsys: Capture) -> None:
    private, long = tmp_path / "private", tmp_path / ("n" * 300)
    private.mkdir()
    with locked(private):
        assert main(["verify", f"{prefix}{private / 'x'}", str(long), "--cache-dir", str(private / "x")]) == 2
    name = prefix.strip("=") or "x"
    assert capsys.readouterr().err.splitlines() == [
        f"error: sources.{name}.path: {private / 'x'} can't be looked at: Permission denied",
        f"sources.{long.name}.path: {long} can't be looked at: File name too long",
        f"cache_dir: {private / 'x'} can't be looked at: Permission denied",
    ]
