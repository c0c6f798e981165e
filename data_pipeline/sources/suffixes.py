"""Which files hold documents, told by their names. Standard library only."""

from __future__ import annotations

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


def format_of(path: Path | str) -> str | None:
    """The format of a file by its name, None if it is none that can be read."""
    name = str(path).rsplit("/", 1)[-1]
    return next((kind for suffix, kind in FORMATS.items() if name.endswith(suffix)), None)


def data_files(folder: Path) -> list[Path]:
    """The visible files of a local folder that hold documents, in sorted order: of one level, text files of all levels.

    A folder with the index.json of MDS shards holds those, and nothing else is looked at. One without any other files may
    have MDS splits, folders with an index.json each.
    """
    if (folder / MDS_INDEX).is_file():
        return [folder / MDS_INDEX]
    files = [path for path in folder.iterdir() if path.is_file() and format_of(path) not in (None, "text")]
    texts = [path for path in folder.rglob("*.txt") if path.is_file()]
    found = sorted(path for path in files + texts if not _is_hidden(path.relative_to(folder)))
    return found or sorted(folder.glob(f"[!.]*/{MDS_INDEX}"))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
