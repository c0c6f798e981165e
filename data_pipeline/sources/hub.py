"""Hugging Face datasets as Arrow files: by name, as a folder that save_to_disk wrote, or as a folder of data files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.config import SourceConfig
from data_pipeline.files import read_json, write_atomically
from data_pipeline.sources.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

SCHEMA = 1
_HOME_CACHE = Path("~/.cache/palimpsest")


def arrow_files(config: SourceConfig, cache_dir: Path | None) -> list[Path]:
    """Return the .arrow files that hold the dataset `config.dataset`, in order.

    A folder of save_to_disk is read as it is. Else the dataset is downloaded and prepared by the `datasets` library, into its own cache. Which files it became is noted in
    our cache: later calls (of other ranks and workers, and of resumed runs) take those files as long as they are there and
    ask nobody, so a dataset that changes on the hub does not change under a run. A dataset that is a selection of rows of its
    files, or is in memory, is written to our cache first.

    Args:
        config: its dataset, subset, split and revision are heeded.
        cache_dir: DataConfig.cache_dir; None is ~/.cache/palimpsest.

    Raises:
        DataError: there is no such dataset, subset or split, or it cannot be fetched.
    """
    location = Path(str(config.dataset))
    if (location / "state.json").is_file() or (location / "dataset_dict.json").is_file():
        return _saved_files(location, config.split)
    folder = (cache_dir or _HOME_CACHE.expanduser()) / "datasets"
    note = folder / f"{_key(config)}.json"
    if (files := _noted(note)) is not None:
        return files
    dataset = _load(config)
    try:
        files = _whole_files(dataset) or _written(dataset, folder / _key(config))
        _write_note(note, config, files)
    except OSError as error:
        raise DataError(
            f"the cache {folder} cannot be written ({error.strerror}); make room, or name another with cache_dir"
        ) from error
    return files


def _key(config: SourceConfig) -> str:
    """A name for the dataset as configured; of a local folder also for its state."""
    dataset = Path(str(config.dataset))
    state = []
    if dataset.is_dir():
        dataset = dataset.absolute()
        stats = ((path, path.stat()) for path in sorted(dataset.rglob("*")) if path.is_file())
        state = [f"{path.relative_to(dataset)} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats]
    asked = [str(dataset), config.subset, config.split, config.revision, state]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]


def _noted(note: Path) -> list[Path] | None:
    """The files of an earlier call, None where there was none or one of them is gone or changed in size."""
    try:
        kept = read_json(note)
        if kept["schema"] != SCHEMA:
            return None
        files = [(Path(file["path"]), file["size"]) for file in kept["files"]]
        return [path for path, _ in files] if all(path.stat().st_size == size for path, size in files) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_note(note: Path, config: SourceConfig, files: list[Path]) -> None:
    kept = {
        "schema": SCHEMA,
        "dataset": config.dataset,
        "subset": config.subset,
        "split": config.split,
        "revision": config.revision,
        "files": [{"path": str(path), "size": path.stat().st_size} for path in files],
    }
    note.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(note, lambda file: file.write(json.dumps(kept, indent=1).encode()))


def _load(config: SourceConfig) -> Dataset:
    """The dataset's split, by the library's own means; whatever these raise becomes a DataError."""
    import datasets

    name = str(config.dataset)
    try:
        revision = None if Path(name).is_dir() else config.revision
        return datasets.load_dataset(name, config.subset, split=config.split, revision=revision)
    except Exception as error:
        # The library and the clients below it share no base class of errors.
        raise DataError(
            f"dataset {name}{_details(config)} cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())}); "
            "name one that exists, or where nodes have no internet load it once on one that has, with the same HF_HOME"
        ) from error


def _saved_files(folder: Path, split: str) -> list[Path]:
    """The .arrow files of a folder that save_to_disk wrote; all their rows are the dataset."""
    try:
        if (folder / "dataset_dict.json").is_file():
            splits = list(read_json(folder / "dataset_dict.json")["splits"])
            if split not in splits:
                raise DataError(f"dataset {folder} has no split {split!r}; it has {', '.join(map(repr, splits))}")
            folder = _inside(folder, split)
        return [_inside(folder, file["filename"]) for file in read_json(folder / "state.json")["_data_files"]]
    except DataError:
        raise
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"dataset {folder} is not as save_to_disk writes it ({type(error).__name__}: {error}); save it again"
        ) from error


def _inside(folder: Path, name: str) -> Path:
    """What has a name in a folder.

    Raises:
        ValueError: it would be elsewhere, or nothing can have that name.
    """
    # Not every text has bytes.
    if b"\0" in os.fsencode(name) or name in ("", "..") or name != Path(name).name:
        raise ValueError(f"{name!r} is no plain name")
    return folder / name


def _details(config: SourceConfig) -> str:
    told = {"subset": config.subset, "split": config.split, "revision": config.revision}
    return "".join(f", {name} {value!r}" for name, value in told.items() if value is not None)


def _whole_files(dataset: Dataset) -> list[Path] | None:
    """The dataset's own Arrow files, None where it is something else than all of their rows in order."""
    import pyarrow as pa

    files = [Path(file["filename"]) for file in dataset.cache_files]
    if not files or dataset._indices is not None:
        return None
    rows = 0
    for file in files:
        with pa.memory_map(str(file)) as mapped:
            rows += sum(batch.num_rows for batch in pa.ipc.open_stream(mapped))
    return files if rows == len(dataset) else None


def _written(dataset: Dataset, folder: Path) -> list[Path]:
    """Write the dataset's rows to `folder`, which appears whole; racing writers agree."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        dataset.save_to_disk(str(temporary))
        temporary.chmod(0o755)
        if not folder.exists():
            os.rename(temporary, folder)
    except OSError:
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _saved_files(folder, "")
