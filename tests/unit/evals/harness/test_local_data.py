"""Local data sets: every layout, and what is said about files that are missing or broken."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from evals.errors import EvalError
from evals.harness.local_data import find_split, hellaswag_record, load_split, missing_message

RECORDS = [{"question": "1 + 1?", "answer": "2"}, {"question": "Über?", "answer": "ja"}]
LINES = "\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS)


@pytest.mark.parametrize(
    "name",
    ["t_test.jsonl", "t_test.jsonl.gz", "t/test.jsonl", "t/test.jsonl.gz", "t/test.parquet", "t.jsonl", "t.jsonl.gz"],
)
def test_every_layout_is_read_without_writing(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(LINES.encode()))
    else:
        path.write_text(LINES + "\n\n", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    found = find_split(tmp_path, "t", "test", is_only_split=True)
    assert found == path
    assert load_split(found).map(lambda record: {"n": len(record["answer"])}).remove_columns("n").to_list() == RECORDS
    assert sorted(tmp_path.rglob("*")) == before


def test_what_datasets_saved_is_read_without_writing(tmp_path: Path) -> None:
    import datasets

    datasets.DatasetDict({"test": datasets.Dataset.from_list(RECORDS)}).save_to_disk(str(tmp_path / "t"))
    before = sorted(tmp_path.rglob("*"))
    found = find_split(tmp_path, "t", "test")
    assert found is not None
    assert load_split(found).map(lambda record: record).to_list() == RECORDS
    assert find_split(tmp_path, "t", "train") is None
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_without_a_split_is_for_tasks_of_one_split(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(LINES)
    assert find_split(tmp_path, "t", "test") is None


def test_what_is_missing_names_files_and_where_they_are_published(tmp_path: Path) -> None:
    message = missing_message(tmp_path, "arc_easy", ["test", "train"], "allenai/ai2_arc/ARC-Easy", is_only_split=True)
    assert f"arc_easy: no data for test and train in {tmp_path}" in message
    for name in ("arc_easy_test.jsonl[.gz]", "arc_easy/train.parquet", "arc_easy.jsonl[.gz]"):
        assert name in message
    assert message.endswith("It is published as allenai/ai2_arc/ARC-Easy on huggingface.co")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a"', "line 2 is not JSON"),
        ("a.jsonl", b"[1]\n", "line 1 is not a JSON object; give a record with named fields per line"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "line 1 is not JSON"),
        ("a.jsonl", b"\n", "holds no records; copy it again"),
        ("a.jsonl.gz", gzip.compress(LINES.encode())[:-20], "cannot be read .*; copy it again"),
        ("a.parquet", b"PAR1", "cannot be read .*; copy it again"),
    ],
)
def test_a_broken_file_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EvalError, match=f"{name}: {message}"):
        load_split(tmp_path / name)


@pytest.mark.parametrize(
    ("ctx", "parts"),
    [
        ("A man sits on a roof. he", ("A man sits on a roof.", "he")),
        ("Is it? yes! the old lady", ("Is it? yes!", "the old lady")),
        ('She says "no." one of the men', ('She says "no."', "one of the men")),
        # WikiHow's contexts end with a sentence: nothing is begun.
        ("How to swim. Get in.", ("How to swim. Get in.", "")),
        ("No end of a sentence", ("No end of a sentence", "")),
        ('A ball. " power dribble', ('A ball. " power dribble', "")),
    ],
)
def test_hellaswags_begun_sentence_is_found(ctx: str, parts: tuple[str, str]) -> None:
    record = hellaswag_record({"ctx": ctx, "label": "1"})
    assert (record["ctx_a"], record["ctx_b"]) == parts
    assert record["label"] == "1"


def test_the_counts_of_the_real_set_are_as_documented(shared_data: Path) -> None:
    records = load_split(shared_data / "hellaswag_validation.jsonl.gz")
    begun = [record for record in records if record["ctx_b"]]
    ended = [record for record in records if record["ctx"].rstrip()[-1] in ".!?"]
    assert (len(records), len(begun), len(ended)) == (10_042, 3_236, 6_799)
    assert all(record["ctx_a"] + " " + record["ctx_b"] == record["ctx"] for record in begun)
