"""Look at and check training data: `python -m data_pipeline demo|index|verify|stats|peek`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.errors import PipelineError
from data_pipeline.files import shard_paths

if TYPE_CHECKING:
    from rich.table import Table


class UsageError(PipelineError):
    """The command line asks for something that cannot be."""


def demo(
    out: Path = Path("runs/demo/corpus"),
    force: bool = False,
    vocab_size: int = 2048,
    max_files: int | None = None,
) -> int:
    """Make the demo corpus: prose and code from this Python's standard library, and a tokenizer.

    Args:
        out: Folder to make; it appears whole, at the end.
        force: Build it again even if the same corpus is there.
        vocab_size: Pieces of the tokenizer.
        max_files: Use at most this many modules and as many help topics, for a quick try.
    """
    from rich.table import Table

    from data_pipeline.demo_corpus import DOMAINS, SPLITS, build_demo_corpus
    from data_pipeline.progress import ProgressReporter

    with ProgressReporter(sys.stderr) as reporter:
        description = build_demo_corpus(
            out, vocab_size=vocab_size, max_files=max_files, force=force, progress=reporter.report
        )
    files = description["files"]
    table = Table(
        title=f"{out}: {files['used']} of {files['found']} source files, "
        f"Python {description['settings']['python']}, {description['tokenizer']['vocab_size']} pieces"
    )
    for heading in ("domain", "part"):
        table.add_column(heading)
    for heading in ("documents", "bytes", "tokens", "tokens/byte"):
        table.add_column(heading, justify="right")
    for domain in DOMAINS:
        for part in SPLITS:
            counts = description["domains"][domain][part]
            table.add_row(
                domain,
                part,
                f"{counts['documents']:,}",
                f"{counts['bytes']:,}",
                f"{counts['tokens']:,}",
                f"{counts['tokens_per_byte']:.3f}",
            )
    _print_table(table)
    return 0


def index(paths: tyro.conf.Positional[tuple[Path, ...]]) -> int:
    """Index .jsonl files, so that a run starts at once; up-to-date indexes are kept.

    Args:
        paths: .jsonl files, or folders of them.
    """
    from data_pipeline.index import open_shard

    for path in _shards(paths):
        shard = open_shard(path)
        print(f"{path}: {shard.num_documents:,} documents, {shard.size:,} bytes, sha256 {shard.sha256[:16]}")
    return 0


def verify(paths: tyro.conf.Positional[tuple[Path, ...]], text_field: str = "text") -> int:
    """Read everything again and report every damaged line; exits with 1 if there is one.

    Args:
        paths: .jsonl files, or folders of them.
        text_field: Field of each JSON object that holds the text.
    """
    from data_pipeline.index import damaged_documents, kept_index, scan_shard

    damaged = 0
    for path in _shards(paths):
        shard, kept = scan_shard(path), kept_index(path)
        if kept is not None and kept.sha256 != shard.sha256:
            damaged += 1
            print(
                f"{path}: the content changed behind the index's back, size and time being the same; "
                f"remove {path.parent / '.index'} and index again"
            )
        errors = 0
        for error in damaged_documents(shard, text_field):
            errors += 1
            print(error)
        damaged += errors
        print(f"{path}: {shard.num_documents:,} documents, {errors} damaged")
    return 1 if damaged else 0


def stats(source: tuple[str, ...], tokenizer: Path, text_field: str = "text") -> int:
    """Count documents, bytes and tokens of sources, and show how long documents are.

    Args:
        source: Sources as NAME=PATH.
        tokenizer: tokenizer.model, tokenizer.json, or a folder with one.
        text_field: Field of each JSON object that holds the text.
    """
    import numpy as np
    from rich.table import Table

    from data_pipeline.encoding import load_tokenizer
    from data_pipeline.index import Source
    from data_pipeline.progress import ProgressReporter

    config = _data_config(source, tokenizer, text_field=text_field)
    encode = load_tokenizer(config.tokenizer).encode
    table = Table(title=f"lengths in tokens of {tokenizer}")
    for heading in ("source", "documents", "empty", "bytes", "tokens", "tokens/byte", "5 %", "50 %", "95 %", "longest"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    with ProgressReporter(sys.stderr) as reporter:
        for name, one in config.sources.items():
            documents = Source(name, one)
            lengths = np.zeros(documents.num_documents, dtype=np.int64)
            size = 0
            for number in range(documents.num_documents):
                text = documents.document(number)
                size += len(text.encode("utf-8", "replace"))
                lengths[number] = len(encode(text))
                reporter.report(f"encoding {name}", number + 1, documents.num_documents)
            quantiles = np.quantile(lengths, (0.05, 0.5, 0.95, 1.0), method="nearest")
            table.add_row(
                name,
                f"{len(lengths):,}",
                f"{int((lengths == 0).sum()):,}",
                f"{size:,}",
                f"{int(lengths.sum()):,}",
                f"{lengths.sum() / max(size, 1):.3f}",
                *(f"{int(length):,}" for length in quantiles),
            )
    _print_table(table)
    return 0


def peek(
    source: tuple[str, ...],
    tokenizer: Path,
    seq_len: int = 256,
    num_lanes: int = 8,
    seed: int = 0,
    lane: int = 0,
    step: int = 0,
    text_field: str = "text",
) -> int:
    """Print one row of the stream as text: its documents, and in ⟦ ⟧ what has no label.

    Args:
        source: Sources as NAME=PATH or NAME=PATH:WEIGHT.
        tokenizer: tokenizer.model, tokenizer.json, or a folder with one.
        seq_len: Tokens of a row.
        num_lanes: Rows of the global batch.
        seed: Seed of the order of documents.
        lane: Which row of the batch, from 0.
        step: Which optimizer step, from 0.
        text_field: Field of each JSON object that holds the text.
    """
    from itertools import islice

    from data_pipeline.rendering import render_row
    from data_pipeline.stream import TokenStream

    config = _data_config(source, tokenizer, seq_len=seq_len, text_field=text_field)
    if not 0 <= lane < num_lanes:
        raise UsageError(f"--lane {lane} is none of the {num_lanes} lanes; give 0 to {num_lanes - 1}")
    if step < 0:
        raise UsageError(f"--step {step} is below 0, the first step")
    stream = TokenStream(config, num_lanes=num_lanes, lanes=range(lane, lane + 1), seed=seed)
    row = next(islice(stream, step, None))
    print(f"lane {lane} of {num_lanes}, step {step}, seed {seed}")
    print(render_row(row, stream.tokenizer))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for damaged data, 2 for a request that cannot be met."""
    functions: tuple[Callable[..., int], ...] = (demo, index, verify, stats, peek)
    commands = {function.__name__: function for function in functions}
    try:
        code = tyro.extras.subcommand_cli_from_dict(
            commands, args=arguments, prog="python -m data_pipeline", description=__doc__
        )
        return int(code)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _print_table(table: Table) -> None:
    """Print a table, whole even where no terminal gives a width."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _shards(paths: tuple[Path, ...]) -> list[Path]:
    """The .jsonl files that the command line names, or all that is wrong with it."""
    if not paths:
        raise UsageError("no path is given; name .jsonl files, or folders of them")
    problems = [message for path in paths for _, message in SourceConfig(path=path).problems()]
    if problems:
        raise UsageError("\n".join(problems))
    return [shard for path in paths for shard in shard_paths(path)]


def _data_config(sources: tuple[str, ...], tokenizer: Path, *, text_field: str, seq_len: int = 4096) -> DataConfig:
    """The settings that NAME=PATH[:WEIGHT] arguments ask for, checked."""
    config = DataConfig(
        sources=dict(_source(argument, text_field) for argument in sources), tokenizer=tokenizer, seq_len=seq_len
    )
    if problems := [f"{field}: {message}" for field, message in config.problems()]:
        raise UsageError("\n".join(problems))
    return config


def _source(argument: str, text_field: str) -> tuple[str, SourceConfig]:
    name, equals, location = argument.partition("=")
    if not (name and equals and location):
        raise UsageError(f"--source {argument!r} is not NAME=PATH or NAME=PATH:WEIGHT")
    path, _, weight = location.rpartition(":")
    try:
        return name, SourceConfig(path=Path(path), weight=float(weight), text_field=text_field)
    except ValueError:
        return name, SourceConfig(path=Path(location), text_field=text_field)


if __name__ == "__main__":
    sys.exit(main())
