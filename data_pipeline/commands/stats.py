"""`stats`: how many documents and tokens there are, how long they are, and how many rows and steps they make."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from data_pipeline.commands.arguments import Files, Request, Rows, UsageError, Work, read_request

if TYPE_CHECKING:
    from rich.table import Table

    from data_pipeline.commands.measures import Measures

_TOO_LONG = {"fail": "refused", "drop": "left out", "cut": "cut"}


def stats(
    files: Files,
    work: Work,
    rows: Rows,
    sample: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: all)")] = None,
    picture: Annotated[Path | None, tyro.conf.arg(metavar="FILE.png", help_behavior_hint="")] = None,
) -> int:
    """Count documents and tokens; show how long documents are and what rows they make.

    $ python -m data_pipeline stats recipes/demo.toml --picture lengths.png
    $ python -m data_pipeline stats /data/starcoder-python --tokenizer /models/Llama-2-7b-hf --text-field content --sample 20000
    $ python -m data_pipeline stats gsm8k.jsonl --tokenizer /models/Llama-2-7b-hf --kind prompt
        --prompt-field question --response-field answer

    Args:
        files: What to read where no recipe says it.
        work: How to work.
        rows: Instead of what the recipe says.
        sample: Estimate from about this many documents, chosen at random.
        picture: Also draw the histograms of lengths into this file (.png, .svg or .pdf).
    """
    from data_pipeline.commands.histograms import draw_bars, length_bins, save_picture
    from data_pipeline.commands.measures import measure
    from data_pipeline.commands.opening import open_sources
    from data_pipeline.commands.progress import ProgressReporter
    from data_pipeline.commands.tables import output_width, print_table
    from data_pipeline.encoding.examples import Encoder
    from data_pipeline.encoding.loading import load_tokenizer

    request = read_request(files, work, rows)
    if sample is not None and sample < 1:
        raise UsageError(f"--sample {sample} is below 1")
    if picture is not None and (
        picture.suffix not in (".png", ".svg", ".pdf") or not picture.absolute().parent.is_dir()
    ):
        raise UsageError(f"--picture {picture} is no .png, .svg or .pdf in a folder that exists")
    config = request.config
    tokenizer = load_tokenizer(config.tokenizer, config.tokenizer_engine)
    columns = {name: Encoder(source, config, tokenizer).columns for name, source in config.sources.items()}
    sources = open_sources(config, work.processes, sys.stderr, columns)
    with ProgressReporter(sys.stderr, unit="documents") as reporter:
        found = [
            measure(source, config, tokenizer, sample=sample, workers=work.processes, progress=reporter.report)
            for source in sources
        ]
    if picture is not None:
        # First, as whoever reads the output may leave before its end.
        is_estimate = any(measures.is_estimate for measures in found)
        lengths = {measures.name: measures.lengths for measures in found}
        save_picture(picture, lengths, seq_len=config.seq_len, is_estimate=is_estimate)
    print_table(_table(found, _outlook(found, request), request))
    for measures in found:
        print(f"\nlengths of {measures.name}{_of_sample(measures)}")
        bins = length_bins(measures.lengths)
        print("\n".join(draw_bars(bins, width=min(output_width(), 100), seq_len=config.seq_len)) or "  no text")
        for message in measures.bad_examples:
            print(f"  bad record: {message}")
    print("".join(f"\n{note}" for note in _notes(found, request)))
    if picture is not None:
        print(f"the picture is {picture}")
    return 0


@dataclass(frozen=True)
class Outlook:
    """What becomes of a source in the run.

    Attributes:
        share: of the run's tokens.
        fill: of its rows, by tokens.
        steps: of the run in one epoch of it.
    """

    share: float
    fill: float
    steps: float


def _outlook(found: list[Measures], request: Request) -> dict[str, Outlook]:
    """What becomes of each source that has tokens."""
    from data_pipeline.commands.measures import packed_fill, tokens_per_step

    config = request.config
    usable = [measures for measures in found if measures.used_tokens]
    if not usable:
        return {}
    packed = {measures.name: measures.used for measures in usable if config.sources[measures.name].is_examples}
    fill = packed_fill(packed, config, request.seed) if packed else 1.0
    weights = [config.sources[measures.name].weight for measures in usable]
    shares = [weight / sum(weights) for weight in weights]
    fills = [fill if measures.name in packed else 1.0 for measures in usable]
    per_step = tokens_per_step(shares, fills, seq_len=config.seq_len, rows=request.num_lanes)
    return {
        measures.name: Outlook(share, of_rows, measures.used_tokens * measures.scale / (share * per_step))
        for measures, share, of_rows in zip(usable, shares, fills, strict=True)
    }


def _table(found: list[Measures], outlook: dict[str, Outlook], request: Request) -> Table:
    """A column for each source: many measures of few sources are best read downwards."""
    from data_pipeline.commands.formatting import format_share
    from data_pipeline.commands.tables import table

    made = table([""], [measures.name + _of_sample(measures) for measures in found])
    config = request.config

    def row(name: str, *values: str) -> None:
        made.add_row(name, *values)

    def counts(name: str, attribute: str) -> None:
        row(name, *(f"{getattr(one, attribute) * one.scale:,.0f}" for one in found))

    row("documents", *(f"{one.num_documents:,}" for one in found))
    counts("  empty", "empty")
    counts("  bad records", "bad")
    counts("bytes of text", "text_bytes")
    counts("tokens", "tokens")
    row("  per byte", *(f"{one.tokens / max(one.text_bytes, 1):.3f}" for one in found))
    for name, share in (("tokens of a document: 5 %", 0.05), ("  median", 0.5), ("  95 %", 0.95), ("  longest", 1.0)):
        row(name, *(f"{one.quantiles(share)[0]:,}" for one in found))
    if any(config.sources[one.name].is_examples for one in found):
        row(
            f"longer than {config.seq_len:,}: {_TOO_LONG[config.too_long]}",
            *(f"{one.too_long * one.scale:,.0f}" if config.sources[one.name].is_examples else "–" for one in found),
        )
    row("targets among tokens", *(format_share(one.targets / max(one.used_tokens, 1)) for one in found))
    known = [outlook.get(one.name) for one in found]
    row(f"fill of rows of {config.seq_len:,}", *(f"{100 * one.fill:.2f} %" if one else "–" for one in known))
    row(
        "rows in an epoch",
        *(
            f"{one.used_tokens * one.scale / (config.seq_len * its.fill):,.0f}" if its else "–"
            for one, its in zip(found, known, strict=True)
        ),
    )
    row("part of the mixture", *(format_share(one.share) if one else "–" for one in known))
    row(f"steps of {request.num_lanes:,} rows in an epoch", *(f"{one.steps:,.1f}" if one else "–" for one in known))
    return made


def _of_sample(measures: Measures) -> str:
    return f" (from {len(measures.lengths):,})" if measures.is_estimate else ""


def _notes(found: list[Measures], request: Request) -> list[str]:
    """What the reader must know of these numbers."""
    notes = []
    if any(measures.is_estimate for measures in found):
        notes.append("Estimates from a sample; without --sample all documents are counted.")
    config = request.config
    bad = [measures.name for measures in found if measures.bad]
    if bad and config.on_bad_record == "fail":
        notes.append(
            f'The run would stop at a bad record of {", ".join(bad)}: repair them, or set on_bad_record = "skip" to leave them out.'
        )
    too_long = [measures.name for measures in found if measures.too_long]
    if too_long and config.too_long == "fail":
        notes.append(
            f"The run would refuse to start, as examples of {', '.join(too_long)} have more than {config.seq_len:,} tokens: "
            'set too_long = "drop" or "cut", or a larger seq_len. Rows are counted without them.'
        )
    if without := [measures.name for measures in found if not measures.used_tokens]:
        notes.append(f"No tokens in {', '.join(without)}: the run would refuse to start; leave the source out.")
    return notes
