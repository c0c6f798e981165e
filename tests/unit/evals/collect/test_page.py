"""The page of all runs: self-contained, safe with any name, complete without JavaScript."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pytest

from evals.collect import published
from evals.collect.page import SCRIPTS, render
from evals.collect.page_data import page_data
from evals.report.plots import KIND_COLORS, OTHER_COLORS
from tests.unit.evals.collect.page_document import make_document

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\"'"
VOID = {"meta", "input", "br", "img"}


class Page(HTMLParser):
    """The page's elements, tables and inline texts, read as a browser without JavaScript reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, str] = {}
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.cells: list[list[str]] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag == "td":
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            attributes = self.elements[-1][1]
            if attributes.get("type"):
                self.inline[str(attributes["id"])] = data
            else:
                self.scripts.append(data)
        elif self.open and self.open[-1] == "style":
            self.styles.append(data)
        else:
            self.words.append(data)
            if "td" in self.open:
                self.cells[-1][-1] += data


def test_document_round_trips() -> None:
    document = make_document(5)
    document["runs"][0]["name"] = EVIL
    page = Page(render(document))
    assert json.loads(page.inline["document"]) == json.loads(json.dumps(page_data(document)))
    assert json.loads(page.inline["published"]) == json.loads(json.dumps(published.as_data()))


def test_numbers_that_json_does_not_have_become_null() -> None:
    document = make_document(2)
    document["runs"][0]["loss"] = [[1.0, math.nan], [2.0, math.inf]]
    text = Page(render(document)).inline["document"]
    assert "NaN" not in text
    assert json.loads(text)["runs"][0]["loss"] == [[1.0, None], [2.0, None]]


def test_what_users_write_stays_text() -> None:
    document = make_document(3)
    run = document["runs"][1]
    for key in ("id", "name", "method", "base"):
        run[key] = EVIL
    run["notes"], run["status"] = [EVIL], EVIL
    document["skipped"] = [{"path": EVIL, "reason": EVIL}]
    document["root"] = EVIL
    document["spreads"][0]["method"] = EVIL
    document["stages"] = [{"runs": [EVIL, EVIL], "tasks": [], "problem": EVIL}]
    document["pareto"] = [[EVIL, 400]]
    page = Page(render(document))
    assert sum(tag == "script" for tag, _ in page.elements) == 3
    assert not [tag for tag, _ in page.elements if tag == "img"]
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert any(EVIL in cell for row in page.cells for cell in row)


def test_nothing_is_loaded_and_only_its_own_script_runs() -> None:
    text = render(make_document(3))
    page = Page(text)
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "base")
        assert not {"src", "srcset", "style"} & set(attributes), tag
        assert not str(attributes.get("href", "#")).startswith("http")
    assert not re.search(r"url\(|@import|\bfetch\(|XMLHttpRequest|import\(|innerHTML|insertAdjacentHTML|\beval\(", text)
    assert not re.search(r"https?://", "".join(page.scripts + page.styles))
    policy = next(str(a["content"]) for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    for (content,), kind in ((page.scripts, "script"), (page.styles, "style")):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_assets_are_package_data() -> None:
    for name in (*SCRIPTS, "app.css", "app.html"):
        assert files("evals.collect").joinpath(name).is_file()


def test_table_without_javascript_has_every_run() -> None:
    document = make_document(50)
    text = render(document)
    table = Page(text[text.index("<noscript>") : text.index("</noscript>") + len("</noscript>")]).cells
    rows = {row[0]: row for row in table if row}
    assert list(rows) == [run["id"] for run in document["runs"]]
    run = document["runs"][1]
    assert rows[run["id"]][1:8] == ["LoRA", "16", "0.0001", "1", "done", "400", "315 M"]
    learned = run["points"][-1]["learned"]
    low, high = (f"{100 * learned[end]:+.1f}".replace("-", "\N{MINUS SIGN}") for end in ("low", "high"))
    assert rows[run["id"]][8] == f"{100 * learned['value']:+.1f} points ({low} to {high})"


def test_skipped_and_notes_are_listed() -> None:
    document = make_document(30)
    document["skipped"] = [{"path": f"p{i}", "reason": "cut off"} for i in range(3)] + [
        {"path": "q", "reason": "newer"}
    ]
    cells = Page(render(document)).cells
    assert ["cut off", "3", "p0p1p2"] in cells
    assert ["newer", "1", "q"] in cells
    noted = {row[0]: row[1:] for row in cells if len(row) == 3 and row[1] in ("running", "stale", "failed")}
    stale = next(run for run in document["runs"] if run["status"] == "stale")
    assert noted[stale["id"]] == ["stale", stale["notes"][0]]
    assert len(noted) == 3


def test_stages_are_shown() -> None:
    document = make_document(2)
    backward = {"value": -0.05, "n": 10, "stderr": 0.01, "unit": "accuracy"}
    task = {"task": "gsm8k", "metric": "accuracy", "taught": 0, "scores": [0.2, None, 0.15], "retention": 0.75}
    document["stages"] = [
        {"runs": ["a", "b", "c"], "tasks": [task | {"backward": backward}], "problem": None},
        {"runs": ["d", "e"], "tasks": [], "problem": "not the same examples"},
    ]
    cells = Page(render(document)).cells
    arrow, minus, dash = "\N{RIGHTWARDS ARROW}", "\N{MINUS SIGN}", "\N{EN DASH}"
    assert [
        f"a {arrow} b {arrow} c",
        "gsm8k, taught in stage 1",
        f"20.0 % {arrow} {dash} {arrow} 15.0 %",
        f"{minus}5.0 points",
        "75.0 %",
    ] in cells
    assert [f"d {arrow} e", "not the same examples", dash, dash, dash] in cells


@pytest.mark.parametrize("count", [0, 1])
def test_few_runs(count: int) -> None:
    document: dict[str, Any] = make_document(1)
    if not count:
        document |= {"runs": [], "spreads": [], "pareto": [], "skipped": [], "collected_at": None, "seconds": None}
    words = " ".join(Page(render(document)).words)
    assert ("What 1 run learned, and what it forgot" if count else "No runs yet") in words
    assert ("Nothing was skipped." in words) == (not count)


def test_colours_are_the_reports() -> None:
    css = files("evals.collect").joinpath("app.css").read_text()
    light = css[: css.index("@media")]
    for name, color in KIND_COLORS.items() | {f"other-{i}": c for i, c in enumerate(OTHER_COLORS)}.items():
        assert f"--{name}: {color};" in light
