"""`verify`: read everything again and report what is damaged."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from data_pipeline.commands.arguments import Files, Request, Work, read_request

if TYPE_CHECKING:
    from rich.table import Table

    from data_pipeline.commands.progress import ProgressReporter
    from data_pipeline.sources.verification import ShardReport

_MAX_SHOWN = 40


def verify(files: Files, work: Work) -> int:
    """Read everything again, and report all that is damaged; exits with 1 if anything is.

    Bytes are compared with those that were indexed, records are decoded, and must hold what their kind needs: its fields,
    text in them, a response that is not empty, messages with roles. What only a tokenizer can tell (names of special tokens
    in a chat, say) is found by stats. Tokens that are kept on disk for these data are read too.

    $ python -m data_pipeline verify recipes/demo.toml
    $ python -m data_pipeline verify /data/starcoder-python --text-field content --workers 16

    Args:
        files: What to read where no recipe says it.
        work: How to work.
    """
    from data_pipeline.commands.formatting import format_bytes
    from data_pipeline.commands.progress import ProgressReporter
    from data_pipeline.commands.tables import print_table, table
    from data_pipeline.sources.source import no_documents

    request = read_request(files, work)
    shown = table(["source", "shard"], ["documents", "size", "damages"])
    num_shards = num_damaged = num_damages = 0
    documents = dict.fromkeys(request.config.sources, 0)
    hashes = set()
    with ProgressReporter(sys.stderr, unit="bytes") as reporter:
        for name, report in _reports(request, work.processes, reporter):
            num_shards += 1
            hashes.add(report.sha256)
            # One that can't be read, either: what is in it is not known.
            documents[name] += report.documents + report.num_damages
            num_damages += report.num_damages
            num_damaged += report.num_damages > 0
            _print_damages(report)
            if report.num_damages or num_shards - num_damaged <= _MAX_SHOWN:
                size = format_bytes(report.num_bytes)
                shown.add_row(
                    name, _short(request, name, report), f"{report.documents:,}", size, f"{report.num_damages:,}"
                )
        num_damages += _verify_tokens(request, hashes, reporter, shown)
    for name in (name for name, count in documents.items() if not count):
        print(no_documents(name, request.config.sources[name]))
        num_damages += 1
    print_table(shown)
    if num_shards - num_damaged > _MAX_SHOWN:
        print(f"and {num_shards - num_damaged - _MAX_SHOWN:,} shards more, which are whole")
    print(_counted(num_damages) if num_damages else "nothing is damaged")
    return 1 if num_damages else 0


def _reports(request: Request, workers: int, reporter: ProgressReporter) -> Iterator[tuple[str, ShardReport]]:
    from data_pipeline.encoding.contents import check_record
    from data_pipeline.sources.verification import verify_source

    for name, source in request.config.sources.items():
        for report in verify_source(
            name,
            source,
            cache_dir=request.config.cache_dir,
            cache_bytes=int(request.config.cache_gb * 1e9),
            workers=workers,
            check=partial(check_record, source),
            progress=reporter.report,
        ):
            yield name, report


def _print_damages(report: ShardReport) -> None:
    for damage in report.damages:
        print(damage)
    if more := report.num_damages - len(report.damages):
        print(f"{report.location}: and {_counted(more)} more")


def _counted(damages: int) -> str:
    return f"{damages:,} damage" if damages == 1 else f"{damages:,} damages"


def _short(request: Request, name: str, report: ShardReport) -> str:
    from data_pipeline.commands.tables import short_location

    return short_location(report.location, request.config.sources[name].location)


def _verify_tokens(request: Request, hashes: set[str], reporter: ProgressReporter, shown: Table) -> int:
    """Read the tokens of the shards with these hashes; returns the number of damaged files."""
    from data_pipeline.commands.formatting import format_bytes
    from data_pipeline.tokens.token_check import damaged_tokens, token_files, token_folders

    config = request.config
    folders = {folder: None for source in config.sources.values() for folder in token_folders(source, config.cache_dir)}
    total = 0
    for folder in folders:
        paths = token_files(folder, hashes)
        if not paths:
            continue
        size = sum(path.stat().st_size for path in paths)
        damages = list(damaged_tokens(paths, lambda done, total: reporter.report("verifying tokens", done, total)))
        print("".join(f"{damage}\n" for damage in damages), end="")
        shown.add_row("tokens", str(folder), "", format_bytes(size), f"{len(damages):,}")
        total += len(damages)
    return total
