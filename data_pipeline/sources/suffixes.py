"""Which files hold documents, told by their names. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

FORMATS = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl.gz",
    ".jsonl.zst": "jsonl.zst",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
"""Formats by the end of a file's name."""
MDS_INDEX = "index.json"
_LOOKS_LIKE_DATA = (*FORMATS, ".json", ".ndjson", ".csv", ".tsv", ".gz", ".zst")


def format_of(path: Path | str) -> str | None:
    """The format of a file by its name, None if it is none that can be read."""
    name = str(path).rsplit("/", 1)[-1]
    return next((kind for suffix, kind in FORMATS.items() if name.endswith(suffix)), None)


def data_files(folder: Path) -> list[Path]:
    """The visible files of a local folder that hold documents, in sorted order: of one level, text files of all levels.

    A folder with the index.json of MDS shards holds those, and nothing else is looked at. One without files of the other
    formats may have MDS splits, folders with an index.json each. Text files count where there is nothing else: beside
    other data they are licences and notes.
    """
    if (folder / MDS_INDEX).is_file():
        return [folder / MDS_INDEX]
    files = [path for path in folder.iterdir() if path.is_file() and format_of(path) not in (None, "text")]
    found = _visible(files, folder) or sorted(folder.glob(f"[!.]*/{MDS_INDEX}"))
    return found or _visible(folder.rglob("*.txt"), folder)


def ignored_files(folder: Path) -> list[Path]:
    """Visible files of a local folder that look like data and are not among its data_files, in sorted order."""
    chosen = set(data_files(folder))
    looking = [path for path in folder.iterdir() if path.name.endswith(_LOOKS_LIKE_DATA)]
    return _visible({*looking, *folder.rglob("*.txt")} - chosen, folder)


def _visible(paths: Iterable[Path], folder: Path) -> list[Path]:
    return sorted(path for path in paths if path.is_file() and not _is_hidden(path.relative_to(folder)))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
