"""A file of verdicts, one JSON object per line, that grows as programs are judged, so that none is judged twice."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from evals.code.program import Verdict


def read_verdicts(path: Path) -> dict[str, Verdict]:
    """The verdicts in a file by their programs' keys; none if there is no file.

    A line that is not a verdict, as a crash leaves at the end, is passed over: its program is judged again.
    """
    known = {}
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
            key = record.pop("key")
            known[key] = Verdict(**record)
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return known


def append_verdict(path: Path, key: str, verdict: Verdict) -> None:
    """Add a verdict at the end of the file, on a line of its own also after a line that was cut off."""
    line = json.dumps({"key": key, **asdict(verdict)}).encode() + b"\n"
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)
