"""`demo`: make the demo corpus."""

from __future__ import annotations

import sys
from pathlib import Path


def demo(
    out: Path = Path("runs/demo/corpus"),
    force: bool = False,
    vocab_size: int = 2048,
    max_files: int | None = None,
) -> int:
    """Make the demo corpus and tokenizer from this Python's standard library.

    Args:
        out: Folder to make; it appears whole, at the end.
        force: Build it again even if the same corpus is there.
        vocab_size: Pieces of the tokenizer.
        max_files: Use at most this many modules and as many help topics, for a quick try.
    """
    from data_pipeline.commands.progress import ProgressReporter
    from data_pipeline.commands.tables import print_table, table
    from data_pipeline.demo.corpus import DOMAINS, PAIRS, SPLITS, build_demo_corpus

    with ProgressReporter(sys.stderr) as reporter:
        description = build_demo_corpus(
            out, vocab_size=vocab_size, max_files=max_files, force=force, progress=reporter.report
        )
    files = description["files"]
    rows = table(
        ["domain", "part"],
        ["documents", "bytes", "tokens", "tokens/byte"],
        title=f"{out}: {files['used']} of {files['found']} source files, "
        f"Python {description['settings']['python']}, {description['tokenizer']['vocab_size']} pieces",
    )
    for domain in (*DOMAINS, PAIRS):
        for part in SPLITS:
            counts = description["domains"][domain][part]
            rows.add_row(
                domain,
                part,
                f"{counts['documents']:,}",
                f"{counts['bytes']:,}",
                f"{counts['tokens']:,}",
                f"{counts['tokens_per_byte']:.3f}",
            )
    print_table(rows)
    return 0
