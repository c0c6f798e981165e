"""The page in a real browser: what is drawn, filters, selection, keys, address, and that nothing is logged as an error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evals.collect.page import render
from tests.unit.evals.collect.browser import CHROMIUM, Browser, browser
from tests.unit.evals.collect.page_document import make_document

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
EVIL = "<img src=x onerror=window.evil=1>"


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as one:
        yield one


@pytest.fixture
def clean(tab: Browser) -> Iterator[Browser]:
    """The tab; the test fails when its page logs or throws anything."""
    tab.problems.clear()
    yield tab
    assert tab.problems == []


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    document = make_document(80)
    document["runs"][5]["name"] = EVIL
    document["runs"][5]["notes"] = [EVIL]
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(render(document), encoding="utf-8")
    return path, document


def text(tab: Browser, selector: str) -> str:
    found = tab.run(f"document.querySelector({json.dumps(selector)}).innerText")
    assert isinstance(found, str)
    return found


def inked(tab: Browser, plot: str, layer: str = "marks") -> int:
    """Pixels of a plot's canvas that are not transparent."""
    count = tab.run(
        f"""(() => {{ const c = document.querySelector('#{plot} canvas.{layer}');
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; }})()"""
    )
    assert isinstance(count, int)
    return count


def place(tab: Browser, index: int) -> tuple[float, float, str]:
    """Where a mark of the first plot is in the window, and its run."""
    x, y, run = tab.run(
        f"""(() => {{ const host = document.getElementById('pareto'); host.scrollIntoView();
        const hit = host.hits[{index}]; const box = host.getBoundingClientRect();
        return [box.left + hit.px, box.top + hit.py, hit.run.id]; }})()"""
    )
    return float(x), float(y), str(run)


def test_everything_is_drawn(clean: Browser, study: tuple[Path, dict[str, Any]]) -> None:
    path, document = study
    clean.open(path)
    assert text(clean, "#matching") == "80 runs"
    for plot in ("pareto", "curves", "spread-learned", "spread-forgotten"):
        assert inked(clean, plot) > 2000, plot
    points = sum(len(run["points"]) for run in document["runs"])
    assert clean.run("document.getElementById('pareto').hits.length") == points
    assert f"{points} points of 80 runs" in text(clean, "#pareto-caption")
    assert clean.run("document.querySelectorAll('#table > table > tbody > tr').length") == 50
    assert text(clean, "#pager").split("\n")[0].startswith("Back")
    assert clean.run("document.querySelectorAll('#rank tbody tr').length") == 32
    assert clean.run("document.querySelectorAll('#backdrops input').length") == 2
    assert "Tulu" not in text(clean, "#backdrops")
    assert clean.run("document.querySelector('noscript').children.length") == 0


def test_filters_count_draw_and_go_into_the_address(clean: Browser, study: tuple[Path, dict[str, Any]]) -> None:
    path, document = study
    clean.open(path)
    before = clean.run("document.getElementById('pareto').hits.length")
    clean.run("document.querySelector('#facets input[value=LoRA]').click()")
    clean.run("document.querySelector('#facets input[name=rank][value=\"64\"]').click()")
    wanted = [r for r in document["runs"] if r["method"] == "LoRA" and r["rank"] == 64]
    assert text(clean, "#matching") == f"{len(wanted)} of 80 runs"
    assert clean.run("location.hash") == "#method=LoRA&rank=64"
    points = sum(len(r["points"]) for r in wanted)
    assert clean.run("document.getElementById('pareto').hits.length") == points < before
    mixed = next(r for r in document["runs"] if r["method"] == "MonteCLoRA")["method"]
    count = clean.run(f"document.querySelector('#facets [data-facet=method] [data-value={mixed}]').textContent")
    assert int(count) == sum(r["method"] == mixed and r["rank"] == 64 for r in document["runs"])
    clean.run("document.getElementById('clear').click()")
    assert (text(clean, "#matching"), clean.run("location.hash")) == ("80 runs", "")


def test_an_address_restores_the_view(clean: Browser, study: tuple[Path, dict[str, Any]]) -> None:
    path, document = study
    run = document["runs"][2]["id"]
    clean.open(path, f"#method=MonteCLoRA&x=forgotten%2Faccuracy&y=learned%2Faccuracy&run={run}&boxes=rank&seed=99")
    assert text(clean, "#matching") == "20 of 80 runs"
    assert clean.run("document.getElementById('x-axis').value") == "forgotten/accuracy"
    assert clean.run("document.getElementById('backdrops').hidden") is True
    assert text(clean, "#selected b") == run
    assert clean.run("document.querySelectorAll('#spread-table tbody tr').length") == 3
    assert inked(clean, "pareto", "over") > 50
    clean.run("location.hash = '#method=LoRA'")
    clean.run("new Promise((done) => setTimeout(done, 50))")
    assert text(clean, "#matching") == "20 of 80 runs"
    assert clean.run("document.getElementById('selected').hidden") is True


def test_pointer_and_keys_on_the_plot(clean: Browser, study: tuple[Path, dict[str, Any]]) -> None:
    path, _ = study
    clean.open(path, "#q=lora-r16")
    x, y, run = place(clean, 3)
    clean.mouse("mouseMoved", x, y)
    assert "95 %" not in text(clean, "#pareto .card")
    assert " to " in text(clean, "#pareto .card")
    assert inked(clean, "pareto", "over") > 20
    clean.mouse("mousePressed", x, y)
    clean.mouse("mouseReleased", x, y)
    assert clean.run("document.querySelectorAll('#table tr.is-selected').length") == 2
    assert clean.run("new URLSearchParams(location.hash.slice(1)).get('run')") is not None
    assert text(clean, "#table td.details").startswith("folder: ")
    clean.run("document.querySelector('#selected button').click()")
    clean.run("document.getElementById('pareto').focus()")
    clean.press("ArrowRight")
    first = text(clean, "#pareto .card b")
    clean.press("ArrowRight")
    clean.press("Enter")
    assert first
    assert clean.run("document.getElementById('selected').hidden") is False
    assert run


def test_table_sorts_pages_and_keeps_the_focus(clean: Browser, study: tuple[Path, dict[str, Any]]) -> None:
    path, document = study
    clean.open(path)
    button = "document.querySelector('#table [data-sort=tokens_seen]')"
    clean.run(f"{button}.focus()")
    clean.press("Enter")
    assert clean.run(f"{button}.parentElement.getAttribute('aria-sort')") == "descending"
    assert clean.run("document.activeElement.dataset.sort") == "tokens_seen"
    clean.press("Enter")
    assert clean.run(f"{button}.parentElement.getAttribute('aria-sort')") == "ascending"
    least = min(run["tokens_seen"] for run in document["runs"])
    shown = clean.run("document.querySelector('#table tbody tr .link').dataset.run")
    assert next(run for run in document["runs"] if run["id"] == shown)["tokens_seen"] == least
    clean.run("document.querySelector('#pager [data-page=\"1\"]').click()")
    assert clean.run("document.querySelectorAll('#table tbody tr').length") == 30
    clean.run("document.querySelector('#columns input[value=base]').click()")
    assert clean.run("!!document.querySelector('#table [data-sort=base]')") is True


def test_names_are_text(clean: Browser, study: tuple[Path, dict[str, Any]]) -> None:
    path, document = study
    clean.open(path, f"#run={document['runs'][5]['id']}")
    assert text(clean, "#selected b") == EVIL
    assert EVIL in text(clean, "#table td.details .notice")
    assert clean.run("[document.images.length, window.evil === undefined]") == [0, True]


def test_csv_is_downloaded_without_leaving_the_page(
    clean: Browser, study: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    path, _ = study
    clean.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    clean.open(path, "#method=LoRA")
    clean.run("document.getElementById('csv').click()")
    target = tmp_path / "runs.csv"
    for _ in range(100):
        if target.exists():
            break
        clean.run("new Promise((done) => setTimeout(done, 50))")
    lines = target.read_text().splitlines()
    assert len(lines) == 21
    assert lines[0].startswith("id,name,method,rank,lr")


@pytest.mark.parametrize("count", [0, 1])
def test_few_runs_leave_no_error(clean: Browser, tmp_path: Path, count: int) -> None:
    document = make_document(1)
    bare = {key: None for key in document["runs"][0]} | {
        "id": "r",
        "name": "r",
        "method": "unknown",
        "status": "unreadable",
    }
    document |= {"runs": [bare] * count, "spreads": [], "pareto": []}
    path = tmp_path / "index.html"
    path.write_text(render(document), encoding="utf-8")
    clean.open(path)
    assert clean.run("document.getElementById('app').hidden") is (count == 0)
    if count:
        assert "training.checkpoint rank" in text(clean, "#rank")
        assert "No run has been scored" in text(clean, "#pareto")


def test_dark_print_and_phone(clean: Browser, study: tuple[Path, dict[str, Any]]) -> None:
    path, _ = study
    clean.open(path)
    color = "getComputedStyle(document.body).backgroundColor"
    light = clean.run(color)
    clean.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    dark = clean.run(color)
    clean.run("window.dispatchEvent(new Event('beforeprint'))")
    assert clean.run(color) == light != dark
    clean.run("window.dispatchEvent(new Event('afterprint'))")
    assert clean.run(color) == dark
    clean.call("Emulation.setEmulatedMedia", features=[])
    clean.call("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=False)
    clean.open(path)
    assert clean.run("document.documentElement.scrollWidth") == 400
    assert clean.run("document.getElementById('filter-panel').open") is False
    assert inked(clean, "pareto") > 1000
    clean.call("Emulation.clearDeviceMetricsOverride")


def test_a_sweep_with_a_cell_that_has_not_begun(clean: Browser, tmp_path: Path) -> None:
    document = make_document(12)
    for run in document["runs"]:
        run["cell"] = {"sweep": "rank-study", "name": run["id"], "values": {"method": "x", "optim.warmup": "5 %"}}
    begun = document["runs"][1]
    document["runs"][0] |= {"adapter": None, "points": [], "loss": [], "final": None, "rank_change": None, "step": None,
                            "steps": None, "tokens_seen": None, "status": "not started", "method": begun["method"]}  # fmt: skip
    document["sweeps"] = [
        {"name": "rank-study", "folder": "", "axes": [], "runs": [run["id"] for run in document["runs"]]}
    ]
    (tmp_path / "index.html").write_text(render(document), encoding="utf-8")
    clean.open(tmp_path / "index.html")
    assert "rank-study: 12 cells: 10 done, 1 not started, 1 running" in text(clean, "#sweeps summary")
    assert "not started" in text(clean, "#table")
    assert "optim.warmup" in text(clean, "#table thead")
    assert inked(clean, "pareto") > 0
