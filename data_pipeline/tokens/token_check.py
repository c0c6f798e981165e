"""Reading again the tokens kept on disk, to find those that are damaged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from data_pipeline.config import SourceConfig
from data_pipeline.sources.index import INDEX_FOLDER, keep_folders
from data_pipeline.sources.local_files import LocalFiles
from data_pipeline.tokens.token_files import DamagedTokensError, open_token_file

_CURE = "the next run makes it again"


def token_folders(source: SourceConfig, cache_dir: Path | None) -> list[Path]:
    """Folders that may hold tokens of a source."""
    kept = keep_folders(source.path or "hub://", cache_dir)
    return [folder / "tokens" if folder.name == INDEX_FOLDER else folder.parent / "tokens" for folder in kept]


def token_files(folder: Path) -> list[Path]:
    """The files of tokens in a folder, in order."""
    return sorted(folder.glob("*/*.tokens"))


def damaged_tokens(paths: list[Path], progress: Callable[[int, int], None]) -> Iterator[str]:
    """Read files of tokens and yield what is wrong with each that is damaged; `progress` is told (bytes read, to read)."""
    sizes = [path.stat().st_size for path in paths]
    done = 0
    for path, size in zip(paths, sizes, strict=True):
        if (damage := _damage(path)) is not None:
            yield f"{path} {damage}; {_CURE}"
        done += size
        progress(done, sum(sizes))


def _damage(path: Path) -> str | None:
    try:
        made_from = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["made_from"]
    except (OSError, ValueError, KeyError, TypeError):
        return "has no description that can be read beside it"
    file = open_token_file(path, made_from)
    if file is None:
        return "is not as it was written"
    files = LocalFiles()
    for number in range(len(file.lengths)):
        try:
            file.example(number, files)
        except DamagedTokensError:
            return f"is not as it was written (document {number} in it)"
    return None
