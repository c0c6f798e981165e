"""Files of documents in every format: opened, indexed, read and verified; with and without the index kept beside them."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.config import SourceConfig
from data_pipeline.errors import PipelineError
from data_pipeline.sources.errors import DamagedRecordError
from data_pipeline.sources.source import Source, open_source
from data_pipeline.sources.verification import verify_source
from tests.fuzz.folders import read
from tests.fuzz.target import Target
from tests.unit.data_pipeline.sources import test_all_formats as formats

TEXTS = ("", "a line\n\nand more", "Grüße, 世界, \U0001f600", '{"a": 1}', *map(str, range(15)))
RECORDS = [
    {"text": text, "number": number, "messages": [{"role": "user", "content": text[:20]}]}
    for number, text in enumerate(TEXTS)
]
CACHE_BYTES = 10**8
TIME = 10**18
"""When files were changed, in ns: an index is of one size and time of a file."""

Write = Callable[[Path, Sequence[dict[str, Any]]], Path]


def write_texts(folder: Path, records: Sequence[dict[str, Any]]) -> Path:
    """A folder of text files."""
    for record in records[:6]:
        path = folder / f"texts/{record['number'] % 3}/{record['number']:02}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(record["text"]))
    return folder / "texts"


def write_splits(folder: Path, records: Sequence[dict[str, Any]]) -> Path:
    """A saved dataset in a folder of splits."""
    path = formats.write_saved_dataset(folder, records)
    path.rename(folder / "train")
    path.mkdir()
    (folder / "train").rename(path / "train")
    (path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    return path


WRITERS: dict[str, Write] = {
    "jsonl": formats.write_jsonl,
    "jsonl.gz": formats.write_gzip,
    "jsonl.zst": formats.write_zstandard,
    "jsonl.zst of frames": formats.write_framed,
    "parquet": formats.write_parquet,
    "arrow stream": formats.write_arrow_stream,
    "arrow file": formats.write_arrow_file,
    "mds": formats.write_mds,
    "mds of zstd": functools.partial(formats.write_mds, compression="zstd"),
    "text files": write_texts,
    "saved dataset": formats.write_saved_dataset,
    "saved splits": write_splits,
}
NOT_KEPT = ("text files", "saved dataset", "saved splits")
"""What has no index that its files alone decide: one of text files is under their path, and of datasets a description says which are read."""


def _open(path: Path) -> Source:
    # Without its description, a dataset is a folder of files, which the datasets library would prepare.
    is_dataset = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    config = SourceConfig(dataset=str(path)) if is_dataset else SourceConfig(path=str(path))
    return open_source("source", config, cache_dir=None, cache_bytes=CACHE_BYTES)


def _records(source: Source) -> list[Any]:
    found: list[Any] = []
    for shard in source.shards:
        found += source.records(len(found), len(found) + shard.num_documents)
    assert len(found) == source.num_documents
    return found


def _set_times(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, ns=(TIME, TIME))


def _anew(name: str, write: Write) -> Target:
    """Files that nobody has seen before: records come, or reasons, and verifying finds the same reasons."""

    def make() -> tuple[dict[str, bytes], str]:
        with tempfile.TemporaryDirectory() as folder:
            path = write(Path(folder), RECORDS)
            return read(Path(folder)), path.name

    made = functools.cache(make)

    def read_all(folder: Path) -> None:
        path = folder / made()[1]
        source = _open(path)
        found = _records(source)
        assert all(isinstance(record, dict | DamagedRecordError) for record in found)
        bad = [number for number, record in enumerate(found) if isinstance(record, DamagedRecordError)]
        assert all(str(folder) in source.where(number) for number in bad)
        reports = verify_source("source", source.config, cache_dir=None, cache_bytes=CACHE_BYTES)
        assert sum(report.num_damages for report in reports) == len(bad)

    return Target(name=name, make=lambda: made()[0], read=read_all, errors=(PipelineError,))


def _kept(name: str, write: Write) -> Target:
    """Files that were indexed before they, or the index, were damaged: what was indexed is read, or an error is raised."""

    def make() -> tuple[dict[str, bytes], str, list[Any]]:
        with tempfile.TemporaryDirectory() as folder:
            path = write(Path(folder), RECORDS)
            _set_times(Path(folder))
            found = _records(_open(path))
            return read(Path(folder)), path.name, found

    made = functools.cache(make)

    def read_kept(folder: Path) -> None:
        files, name, true = made()
        _set_times(folder)
        is_same = all(
            (folder / file).is_file() and (folder / file).stat().st_size == len(content)
            for file, content in files.items()
            if ".index" not in file
        )
        # Without its index, changed text that is still JSON is another text and nobody can tell.
        has_index = all((folder / file).is_file() and (folder / file).read_bytes() == content
                        for file, content in files.items() if ".index" in file)  # fmt: skip
        is_untouched = all((folder / file).is_file() and (folder / file).read_bytes() == content
                           for file, content in files.items() if ".index" not in file)  # fmt: skip
        found = _records(_open(folder / name))
        if is_untouched or (is_same and has_index):
            assert found == true

    return Target(name=f"{name} with index", make=lambda: made()[0], read=read_kept, errors=(PipelineError,), share=0.5)


TARGETS = [_anew(name, write) for name, write in WRITERS.items()] + [
    _kept(name, write) for name, write in WRITERS.items() if name not in NOT_KEPT
]
