"""Files outside of docs/ that its pages link to become pages of the site: Markdown as it is, all else as its text.

On a Git host such a link leads to the file itself. A hook of mkdocs, named in mkdocs.yml.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "repository"
LINK = re.compile(r"(?<=\]\()(\.\./[^)#\s]+)")
LANGUAGES = {".toml": "toml", ".py": "python", ".sh": "bash", ".json": "json"}


def outside(target: str, page: str) -> str:
    """The path in the repository that a link on a page leads to; "" where it stays in docs/, or leads to no file."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    is_outside = not path.startswith(("docs/", "../")) and (ROOT / path).is_file()
    return path if is_outside else ""


def name_of(path: str) -> str:
    """The page of a file."""
    return f"{FOLDER}/{path}" if path.endswith(".md") else f"{FOLDER}/{path}.md"


def on_files(files: Files, *, config: Any, **_: Any) -> Files:
    """Add a page for every file that is linked to from docs/; those that such a file links to are not added."""
    found = {
        path
        for page in files.documentation_pages()
        for target in LINK.findall(page.content_string)
        if (path := outside(target, page.src_uri))
    }
    for path in sorted(found):
        files.append(File.generated(config, name_of(path), content=content_of(path, found)))
    return files


def content_of(path: str, found: set[str]) -> str:
    """What the page of a file shows."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if not path.endswith(".md"):
        return f"# {path}\n\n```{LANGUAGES.get(Path(path).suffix, 'text')}\n{text.rstrip()}\n```\n"

    def moved(match: re.Match[str]) -> str:
        """The link as it is from the page's new place; only its text where nothing is there."""
        label, target, anchor = match[1], match[2], match[3] or ""
        there = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        here = posixpath.dirname(name_of(path))
        if there.startswith("docs/"):
            return f"[{label}]({posixpath.relpath(there.removeprefix('docs/'), here)}{anchor})"
        return f"[{label}]({posixpath.relpath(name_of(there), here)}{anchor})" if there in found else label

    return re.sub(r"\[([^\]\n]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)", moved, text)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links to files outside of docs/ lead to their pages."""
    here = posixpath.dirname(page.file.src_uri)

    def led(match: re.Match[str]) -> str:
        path = outside(match[1], page.file.src_uri)
        return posixpath.relpath(name_of(path), here or ".") if path else match[1]

    return markdown if here.startswith(FOLDER) else LINK.sub(led, markdown)
