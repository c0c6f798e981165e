"""`index`: find out where every document is, once."""

from __future__ import annotations

import sys

from data_pipeline.commands.arguments import Files, Work, read_request


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
    return 0
