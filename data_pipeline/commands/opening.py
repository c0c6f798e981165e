"""Opening what a request names, with progress where it must be indexed or encoded first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TextIO

from data_pipeline.commands.progress import ProgressReporter
from data_pipeline.config import DataConfig
from data_pipeline.sources.source import Source, open_source
from data_pipeline.stream.opening import OpenedData, open_data


def open_sources(
    config: DataConfig, workers: int, file: TextIO, columns: Mapping[str, Sequence[str]] | None = None
) -> list[Source]:
    """Open all sources, and show on `file` how their indexes are made, where they are not kept.

    Args:
        config: names the sources.
        workers: processes that make indexes.
        file: where to show progress.
        columns: by source, the fields that are needed; None: all.
    """
    opened = []
    with ProgressReporter(file, unit="bytes") as reporter:
        for name, source in config.sources.items():

            def report(what: str, done: int, total: int, name: str = name) -> None:
                reporter.report(f"indexing {name}", done, total)

            opened.append(
                open_source(
                    name,
                    source,
                    cache_dir=config.cache_dir,
                    cache_bytes=int(config.cache_gb * 1e9),
                    workers=workers,
                    columns=None if columns is None else columns[name],
                    progress=report,
                )
            )
    return opened


def open_everything(config: DataConfig, workers: int, file: TextIO) -> OpenedData:
    """Open all that a stream reads, and show on `file` how indexes and tokens are made, where they are not kept."""
    # First alone, as progress is in bytes here, and in documents there.
    open_sources(config, workers, file)
    with ProgressReporter(file, unit="documents") as reporter:
        return open_data(config, workers=workers, progress=reporter.report)
