"""`peek`: a row of the run as text."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import tyro

from data_pipeline.commands.arguments import Files, Request, Rows, UsageError, Work, read_request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from data_pipeline.sources.source import Source
    from data_pipeline.stream.token_stream import Row, TokenStream

_LONG_ROW = 1 << 18
"""Tokens; reading them takes seconds."""


def peek(
    files: Files,
    work: Work,
    rows: Rows,
    lane: Annotated[int, tyro.conf.arg(metavar="ROW")] = 0,
    step: Annotated[int, tyro.conf.arg(metavar="STEP")] = 0,
    epoch: Annotated[int | None, tyro.conf.arg(metavar="EPOCH", help_behavior_hint="")] = None,
    ids: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False,
) -> int:
    """Print a row of the run as text, with its documents and which tokens are learned.

    What is learned is plain. What is only read is dim on a terminal, else in ⟦ ⟧. After ▸ stands the token that comes next,
    learned here too, of a document that goes on in the next row.

    $ python -m data_pipeline peek recipes/demo.toml --lane 3 --step 100
    $ python -m data_pipeline peek recipes/demo.toml --epoch 1
    $ python -m data_pipeline peek chats.jsonl --kind chat --tokenizer /models/Llama-3.1-8B-Instruct --seq-len 1024 --ids

    Args:
        files: What to read where no recipe says it.
        work: How to work.
        rows: Instead of what the recipe says.
        lane: Which row of the batch, from 0.
        step: Which optimizer step, from 0; with --epoch counted from its beginning.
        epoch: Begin with the lane's first documents of this epoch of every source. Its rows are not cut where those of the run
            are, which come from the epoch before.
        ids: List the ids too.
    """
    from data_pipeline.commands.opening import open_everything
    from data_pipeline.commands.rendering import render_colours, render_plain, row_parts
    from data_pipeline.stream.token_stream import TokenStream

    request = read_request(files, work, rows)
    if not 0 <= lane < request.num_lanes:
        raise UsageError(
            f"--lane {lane} is none of the {request.num_lanes} rows of a batch; give 0 to {request.num_lanes - 1}"
        )
    for name, value in (("step", step), ("epoch", epoch)):
        if value is not None and value < 0:
            raise UsageError(f"--{name} {value} is below 0, the first")
    data = open_everything(request.config, work.processes, sys.stderr)
    lanes = range(lane, lane + 1)
    with TokenStream(request.config, num_lanes=request.num_lanes, lanes=lanes, seed=request.seed, data=data) as stream:
        if epoch is not None:
            stream.go_to_epoch(epoch)
        row = _row_of_step(stream, step)
        where = _positions(row, stream.sources)
        names = [source.name for source in stream.sources]
        parts = list(row_parts(row, stream.tokenizer, names, lambda of, number: where[of][number]))
    print(_heading(request, lane, step, epoch))
    if sys.stdout.isatty():
        from rich.console import Console

        Console(highlight=False).print(render_colours(parts, ids=ids))
    else:
        print(render_plain(parts, ids=ids))
    return 0


def _heading(request: Request, lane: int, step: int, epoch: int | None) -> str:
    of_epoch = "" if epoch is None else f" from the beginning of epoch {epoch}"
    return (
        f"{request.origin}: row {lane} of {request.num_lanes}, step {step}{of_epoch} "
        f"(seed {request.seed}, seq_len {request.config.seq_len:,})"
    )


def _positions(row: Row, sources: Sequence[Source]) -> list[dict[int, str]]:
    """Where the documents of a row are, by source and number."""
    from data_pipeline.sources.positions import positions

    return [
        positions(source, (document.number for document in row.documents if document.source == index))
        for index, source in enumerate(sources)
    ]


def _row_of_step(stream: TokenStream, step: int) -> Row:
    """Where a row begins is known from the rows before it, which are walked."""
    from data_pipeline.commands.progress import ProgressReporter

    with ProgressReporter(sys.stderr, unit="rows") as reporter:
        for number in range(step):
            next(stream)
            if step > 100:
                reporter.report("walking to the step", number + 1, step)
        if stream.config.seq_len < _LONG_ROW:
            return next(stream)
        reporter.report("reading a long row", 0, 1)
        row = next(stream)
        reporter.report("reading a long row", 1, 1)
        return row
