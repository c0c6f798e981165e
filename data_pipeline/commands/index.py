"""`index`: find out where every document is, once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.commands.arguments import Files, Work, read_request
from data_pipeline.files import is_url

if TYPE_CHECKING:
    from data_pipeline.sources.source import Source

_MAX_IGNORED = 5


def index(files: Files, work: Work) -> int:
    """Find where every document is, once, so that a run starts at once.

    Indexes that are up to date are kept, and a command that was stopped goes on where it was.

    $ python -m data_pipeline index recipes/demo.toml
    $ python -m data_pipeline index /data/starcoder-python --workers 16
    $ python -m data_pipeline index code=/data/code prose=s3://bucket/prose --cache-dir /scratch/cache

    Args:
        files: What to read where no recipe says it.
        work: How to work.
    """
    from data_pipeline.commands.formatting import format_bytes
    from data_pipeline.commands.opening import open_sources
    from data_pipeline.commands.tables import print_table, short_location, table

    request = read_request(files, work)
    rows = table(["source", "shard"], ["documents", "size", "index"])
    rows.add_column("sha256")
    sources = open_sources(request.config, work.processes, sys.stderr)
    for source in sources:
        folder = str(request.config.sources[source.name].location)
        for shard in source.shards:
            rows.add_row(
                source.name,
                short_location(shard.location, folder),
                f"{shard.num_documents:,}",
                format_bytes(shard.num_bytes),
                format_bytes(shard.index.size_on_disk),
                shard.sha256[:12],
            )
        rows.add_section()
    print_table(rows)
    totals = table(["source"], ["shards", "documents", "bytes"])
    totals.add_column("fingerprint")
    for source in sources:
        totals.add_row(
            source.name,
            f"{len(source.shards):,}",
            f"{source.num_documents:,}",
            f"{source.num_bytes:,}",
            source.fingerprint[:16],
        )
    print_table(totals)
    for source in sources:
        if ignored := _ignored(source):
            more = f" and {len(ignored) - _MAX_IGNORED:,} more" if len(ignored) > _MAX_IGNORED else ""
            print(f"not read in {source.config.location}: {', '.join(ignored[:_MAX_IGNORED])}{more}")
    return 0


def _ignored(source: Source) -> list[str]:
    """Files of the source's folder that look like data and are not read; none are known of URLs."""
    from data_pipeline.sources.suffixes import ignored_files

    folder = Path(source.config.path or "")
    if source.config.path is None or is_url(source.config.path) or not folder.is_dir():
        return []
    if source.shards[0].file.format == "mds":
        # All but its index.json, which names them.
        return []
    return [str(path.relative_to(folder)) for path in ignored_files(folder)]
