"""The study's page is what its runs recorded: written again from the records beside it, it says the same."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from evals.claims.command import run_claims

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_comes_from_the_records(tmp_path: Path) -> None:
    with tarfile.open(DOCS / "study" / "records.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    run_claims([tmp_path / "study_tiny"], tmp_path / "study.md")
    found, committed = (
        json.loads((folder / "claims.json").read_text()) for folder in (tmp_path / "study", DOCS / "study")
    )
    # Sums over documents may be added in another order by another numpy.
    same(found, committed)
    lines = (DOCS / "study.md").read_text().splitlines()
    verdicts = [line.split(" | ")[3] for line in lines if line.startswith("| ") and "**" in line]
    again = (tmp_path / "study.md").read_text().splitlines()
    assert verdicts == [line.split(" | ")[3] for line in again if line.startswith("| ") and "**" in line]
    assert verdicts
    for figure in DOCS.glob("study/*.svg"):
        assert (tmp_path / "study" / figure.name).exists()


def same(found: Any, committed: Any) -> None:
    """Equal, numbers within a rounding of what was printed."""
    if isinstance(committed, dict):
        assert found.keys() == committed.keys()
        for key in committed:
            same(found[key], committed[key])
    elif isinstance(committed, list):
        assert len(found) == len(committed)
        for one, other in zip(found, committed, strict=True):
            same(one, other)
    elif isinstance(committed, float):
        assert found == pytest.approx(committed, rel=1e-3, abs=1e-4)
    else:
        assert found == committed
