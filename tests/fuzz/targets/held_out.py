"""Held-out documents, and suites' data on disk."""

from __future__ import annotations

import gzip
from pathlib import Path

from evals.errors import EvalError
from evals.harness.local_data import load_split
from evals.held_out.documents import draw_documents
from evals.held_out.json_lines import read_records
from tests.fuzz.folders import jsonl_bytes
from tests.fuzz.target import Target

RECORDS = [{"id": f"d{number}", "text": f"Grüße {number}", "prompt": "p", "response": "r"} for number in range(6)]


def _files() -> dict[str, bytes]:
    lines = jsonl_bytes(RECORDS)
    return {"a.jsonl": lines, "b.jsonl.gz": gzip.compress(lines, mtime=0)}


def _read(folder: Path) -> None:
    """Texts that can be written, under ids that are all different."""
    for name in ("a.jsonl", "b.jsonl.gz"):
        documents = draw_documents(folder / name, seed=1, max_bytes=5)
        assert all(0 < len(document.text.encode()) <= 5 for document in documents)
        assert len({document.id for document in documents}) == len(documents)
        read_records(folder / name, ["prompt", "response"])
        assert all(isinstance(record, dict) for record in load_split(folder / name))


TARGETS = [Target(name="held-out records", make=_files, read=_read, errors=(EvalError,))]
