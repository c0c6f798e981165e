"""The guides as a site: what is built is whole, and asks no network. Needs the environment of `make docs`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-docs" / "bin" / "python"

pytestmark = pytest.mark.skipif(
    not (ROOT / ".venv-docs" / ".complete").is_file(), reason="the environment of `make docs` is not here"
)


def build(project: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Build a project's site, where a warning is an error."""
    command = [str(PYTHON), "-m", "mkdocs", "build", "--strict", "--config-file", str(project / "mkdocs.yml")]
    return subprocess.run(
        [*command, "--site-dir", str(out)], cwd=project, capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site."""
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_guide_is_there(site: Path) -> None:
    guides = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert len(guides) >= 15
    assert [path for path in sorted(guides) if not (site / path).is_file()] == []


def test_public_names_have_their_docstrings(site: Path) -> None:
    text = re.sub(r"<[^>]*>", "", (site / "api" / "monteclora.html").read_text())
    assert "attach_adapter" in text
    assert "Low-rank adaptation: y = W x" in text


def test_files_outside_of_the_guides_have_pages(site: Path) -> None:
    recipe = re.sub(r"<[^>]*>", "", (site / "repository" / "recipes" / "demo.toml.html").read_text())
    assert "The demo's continued pretraining" in recipe
    assert 'href="repository/recipes/demo.toml.html"' in (site / "recipes.html").read_text()
    assert "How to add" in (site / "repository" / "CONTRIBUTING.html").read_text()


def test_nothing_is_asked_from_a_network(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) >= 20
    for page in pages:
        asked = re.findall(
            r"<(?:script|link|img|iframe)[^>]*?(?:src|href)=[\"']?(https?://[^\"' >]*)", page.read_text()
        )
        assert asked == [], page
    assert (site / "search" / "search_index.js").is_file()


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("[gone](gone.md)", "gone.md"), ("[there](other.md#nowhere)", "#nowhere"), ("[out](../recipes/gone.toml)", "gone.toml"),
    ],
)  # fmt: skip
def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path, link: str, said: str) -> None:
    (tmp_path / "docs" / "assets").mkdir(parents=True)
    text = (ROOT / "mkdocs.yml").read_text()
    # Without the pages of the repository's own.
    text = re.sub(r"^nav:\n(?:[ ].*\n)*", "", text, flags=re.MULTILINE)
    text = re.sub(r"^  - mkdocstrings:\n(?:    .*\n)*", "", text, flags=re.MULTILINE)
    (tmp_path / "mkdocs.yml").write_text(text)
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "docs" / "index.md").write_text("# One\n\n[other](other.md#two)\n")
    (tmp_path / "docs" / "other.md").write_text("# Other\n\n## Two\n")
    assert build(tmp_path, tmp_path / "site").returncode == 0
    (tmp_path / "docs" / "index.md").write_text(f"# One\n\n{link}\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert said in done.stderr


def pictures(*words: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """Run tools/pictures.py, or code that imports it."""
    command = [str(PYTHON), *(["-c", code] if code else ["tools/pictures.py", *words])]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT / "tools")},
    )  # fmt: skip


def test_a_terminal_becomes_a_page() -> None:
    code = """
import pictures
red = "\\\\033[31;1mred\\\\033[0m"
lines = pictures.terminal(["printf", f"gone\\\\r{red} <1>\\\\n"], seconds=60)
page = pictures.page_of(lines, "a & b")
assert len(lines) == 1 and "a &amp; b" in page and "&lt;" in page, page
assert f'color:{pictures.COLORS["red"]};font-weight:bold">r<' in page, page
lines = pictures.terminal(["sh", "-c", "echo there; exec sleep 100"], until="there", seconds=60)
assert "".join(char.data for char in lines[0]).strip() == "there"
try:
    pictures.terminal(["sleep", "100"], seconds=1)
except TimeoutError as error:
    print(error)
"""
    done = pictures(code=code)
    assert done.stdout == "sleep 100: not shown after 1 s: its end\n", done.stderr


def test_pictures_need_a_demo_that_is_done(tmp_path: Path) -> None:
    done = pictures(str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == f"{tmp_path}: no demo that is done is there; run `make demo` first\n"


def test_pictures_need_a_browser() -> None:
    code = """
import pathlib, pictures
pictures.CHROMIUM = ("no-such-browser",)
pictures.picture(pathlib.Path("/x.html"), pathlib.Path("/x.png"), width=1, height=1)
"""
    done = pictures(code=code)
    assert done.returncode == 1
    assert done.stderr == "no browser is here to make pictures with: install one of no-such-browser\n"
