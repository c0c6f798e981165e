"""Data sets in a local folder, for machines without internet: the official task, reading these files.

For a task and a split, e.g. arc_challenge and test, the folder may hold, first found first used,

- arc_challenge_test.jsonl or arc_challenge_test.jsonl.gz, a JSON object per line;
- arc_challenge/test.jsonl, arc_challenge/test.jsonl.gz or arc_challenge/test.parquet;
- arc_challenge.jsonl or arc_challenge.jsonl.gz, for a task of one split;
- arc_challenge/, as `datasets.DatasetDict.save_to_disk` writes it.

Records have the fields of the data set on the hub. HellaSwag's may have only `ctx`, see `hellaswag_record`.
Nothing is written: all is read into memory.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.errors import EvalError

if TYPE_CHECKING:
    import datasets


def find_split(data_dir: Path, task: str, split: str, *, is_only_split: bool = False) -> Path | None:
    """The file, or the folder that `datasets` wrote, that holds a split; None when there is none."""
    folder = Path(data_dir) / task
    for path in split_files(data_dir, task, split, is_only_split=is_only_split):
        if path.is_file():
            return path
    # What save_to_disk leaves of a DatasetDict: a list of its splits, and a folder for each.
    return folder / split if (folder / "dataset_dict.json").is_file() and (folder / split).is_dir() else None


def split_files(data_dir: Path, task: str, split: str, *, is_only_split: bool = False) -> list[Path]:
    """The files that are looked for, in this order."""
    names = [f"{task}_{split}.jsonl", f"{task}_{split}.jsonl.gz"]
    names += [f"{task}/{split}.jsonl", f"{task}/{split}.jsonl.gz", f"{task}/{split}.parquet"]
    names += [f"{task}.jsonl", f"{task}.jsonl.gz"] if is_only_split else []
    return [Path(data_dir) / name for name in names]


def load_split(path: Path) -> datasets.Dataset:
    """A split's records, in memory.

    Raises:
        EvalError: the file cannot be read, or holds no records.
    """
    import datasets

    try:
        if path.is_dir():
            loaded = datasets.load_from_disk(str(path), keep_in_memory=True)
        elif path.suffix == ".parquet":
            import pyarrow.parquet

            loaded = datasets.Dataset(pyarrow.parquet.read_table(path))
        else:
            loaded = datasets.Dataset.from_list(_records(path))
    except EvalError:
        raise
    except Exception as error:  # pyarrow and datasets raise errors of many classes for files that are not theirs
        raise EvalError(f"{path}: cannot be read ({error}); copy it again") from error
    if len(loaded) == 0:
        raise EvalError(f"{path}: holds no records; copy it again")
    if {"activity_label", "ctx", "endings"} <= set(loaded.column_names) and "ctx_a" not in loaded.column_names:
        loaded = datasets.Dataset.from_list([hellaswag_record(record) for record in loaded])
    return loaded


def hellaswag_record(record: dict[str, Any]) -> dict[str, Any]:
    """A HellaSwag record with ctx_a and ctx_b, from one with `ctx` = "<ctx_a> <ctx_b>" only.

    The harness capitalises ctx_b, the beginning of the sentence to be finished. It is what follows the last end of a
    sentence; in records from WikiHow, which end with a sentence, it is empty. So it is in the published validation set:
    6,799 of its 10,042 contexts end with a sentence, 3,236 with one that begins in lower case and is not ended, and only 7
    with something else (a quotation mark, a digit), which is left as it is. Files whose text was already cleaned of
    WikiHow's brackets are cleaned again by the harness, which changes 14 records where a bracket or a double space is left.
    """
    match = re.fullmatch(r"(.*[.!?][\"')]*) +([a-z][^.!?]*)", record["ctx"], re.DOTALL)
    ctx_a, ctx_b = match.groups() if match else (record["ctx"], "")
    return {**record, "ctx_a": ctx_a, "ctx_b": ctx_b}


def _records(path: Path) -> list[dict[str, Any]]:
    records = []
    open_text: Any = gzip.open if path.suffix == ".gz" else open
    with open_text(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise EvalError(f"{path}: line {number} is not JSON ({error}); copy the file again") from error
            if not isinstance(record, dict):
                raise EvalError(f"{path}: line {number} is not a JSON object; give a record with named fields per line")
            records.append(record)
    return records


def missing_message(data_dir: Path, task: str, splits: Sequence[str], source: str, *, is_only_split: bool) -> str:
    """What to say about splits that are not there: every file looked for, and where the data is published."""
    files = [f"{task}_{split}.jsonl[.gz], {task}/{split}.jsonl[.gz], {task}/{split}.parquet" for split in splits]
    files += [f"{task}.jsonl[.gz]"] if is_only_split else []
    return (
        f"{task}: no data for {' and '.join(splits)} in {data_dir}; looked for {', '.join(files)} and {task}/ as datasets' "
        f"save_to_disk writes it. It is published as {source} on huggingface.co"
    )
