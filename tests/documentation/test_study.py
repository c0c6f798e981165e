"""The study's pages are what its runs recorded: written again from the records beside them, they say the same."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evals.claims.command import run_claims
from evals.collect.command import run_collect

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study, with nothing in it but the committed records."""
    folder = tmp_path_factory.mktemp("records")
    subprocess.run(["tar", "xf", DOCS / "study" / "records.tar.xz", "-C", folder], check=True, timeout=60)
    return folder / "study_tiny"


def test_the_verdicts_come_from_the_records(study: Path, tmp_path: Path) -> None:
    run_claims([study], tmp_path / "study.md")
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


def test_the_page_of_all_runs_comes_from_the_records(study: Path, tmp_path: Path) -> None:
    run_collect([study], Console(file=io.StringIO()), out=tmp_path)
    same(runs_on(tmp_path / "index.html"), runs_on(DOCS / "study" / "runs.html"))


def runs_on(page: Path) -> list[Any]:
    """The runs, with all their figures, that a page of `evals collect` shows."""
    before, _, after = page.read_text().partition('<script type="application/json" id="document">')
    assert before
    document = json.loads(after.partition("</script>")[0])
    assert len(document["runs"]) > 100
    return list(document["runs"])


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
