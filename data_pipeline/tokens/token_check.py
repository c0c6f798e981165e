"""Reading again the tokens kept on disk, to find those that are damaged."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from data_pipeline.config import SourceConfig
from data_pipeline.sources.index import INDEX_FOLDER, keep_folders
from data_pipeline.sources.local_files import LocalFiles
from data_pipeline.tokens.token_files import SCHEMA, DamagedTokensError, open_token_file

_CURE = "the next run makes it again"


def token_folders(source: SourceConfig, cache_dir: Path | None) -> list[Path]:
    """Folders that may hold tokens of a source."""
    kept = keep_folders(source.path or "hub://", cache_dir)
    return [folder / "tokens" if folder.name == INDEX_FOLDER else folder.parent / "tokens" for folder in kept]


def token_files(folder: Path, shards: Collection[str] | None = None) -> list[Path]:
    """The files of tokens in a folder, in order, without those that are being written or whose writing was stopped.

    Args:
        folder: one of token_folders.
        shards: hex hashes of shards, only whose tokens are wanted; None: all. The folder may hold those of many others.
    """
    of_recipes = sorted(path for path in folder.glob("*") if shards is None or _is_of(path, shards))
    paths = (path for of_recipe in of_recipes for path in sorted(of_recipe.glob("*.tokens")))
    # A piece's description is written after its tokens.
    return [path for path in paths if path.with_suffix(".json").exists()]


def damaged_tokens(paths: list[Path], progress: Callable[[int, int], None]) -> Iterator[str]:
    """Read files of tokens and yield what is wrong with each that is damaged; `progress` is told (bytes read, to read)."""
    sizes = [_size(path) for path in paths]
    done = 0
    for path, size in zip(paths, sizes, strict=True):
        if (damage := _damage(path)) is not None:
            yield f"{path} {damage}; {_CURE}"
        done += size
        progress(done, sum(sizes))


def _size(path: Path) -> int:
    """Bytes to read; none of what leads nowhere, which is damage."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _is_of(folder: Path, shards: Collection[str]) -> bool:
    """Whether the tokens in a folder, which are those of one shard, are of one of these; as the first description says."""
    for path in folder.glob("*.json"):
        try:
            return json.loads(path.read_text(encoding="utf-8"))["made_from"]["shard"] in shards
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return False


def _damage(path: Path) -> str | None:
    try:
        description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        schema, made_from = description["schema"], description["made_from"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "has no description that can be read beside it"
    if schema != SCHEMA:
        # Of another version of this program: no run reads it.
        return None
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
