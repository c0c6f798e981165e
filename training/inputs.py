"""The files that a configuration names and a run reads. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_pipeline.config import TOKENIZER_FILES
from data_pipeline.files import is_url
from data_pipeline.sources.suffixes import data_files
from training.config import Config, looks_like_path


def input_paths(config: Config) -> Iterator[tuple[str, Path]]:
    """Yield (setting, file or folder) for everything local that a run reads, there or not."""
    for name, source in config.data.sources.items():
        for field in ("path", "dataset"):
            location = getattr(source, field)
            if location is not None and not is_url(location) and Path(location).is_absolute():
                yield f"data.sources.{name}.{field}", Path(location)
    yield "data.tokenizer", config.data.tokenizer
    if config.data.chat_template is not None:
        yield "data.chat_template", config.data.chat_template
    if config.model.base is not None and looks_like_path(config.model.base):
        yield "model.base", Path(config.model.base)
    if config.adapter.init_from is not None:
        yield "adapter.init_from", config.adapter.init_from
    if config.run.branch_from is not None:
        yield "run.branch_from", config.run.branch_from
    for name, task in config.eval.tasks.items():
        yield f"eval.tasks.{name}.path", Path(task.path)
    if config.eval.data_dir is not None:
        yield "eval.data_dir", config.eval.data_dir


def files_of(setting: str, path: Path) -> list[Path]:
    """The files that a run reads of what a setting names: all of a folder's, but of data and tokenizers those it uses.

    Raises:
        OSError: the folder can't be read.
    """
    if not path.is_dir():
        return [path]
    if setting == "data.tokenizer":
        return [path / name for name in TOKENIZER_FILES if (path / name).is_file()]
    if setting.endswith(".path"):
        return data_files(path)
    return sorted(file for file in path.rglob("*") if file.is_file())


def named_inputs(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (setting, what it says) for everything that a run reads from elsewhere: URLs and names on the hub."""
    for name, source in config.data.sources.items():
        if source.path is not None and is_url(source.path):
            yield f"data.sources.{name}.path", source.path
        if source.dataset is not None and not Path(source.dataset).is_absolute():
            yield f"data.sources.{name}.dataset", source.dataset
    if config.model.base is not None and not looks_like_path(config.model.base):
        yield "model.base", config.model.base
