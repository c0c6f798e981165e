"""`tokenize`: put the tokens of all sources on disk before the run."""

from __future__ import annotations

import dataclasses
import sys

from data_pipeline.commands.arguments import Files, Rows, Work, read_request


def encode_ahead(files: Files, work: Work, rows: Rows) -> int:
    """Put the tokens of all sources on disk before the run.

    A run encodes examples (all kinds but text) when it starts, and text too where its recipe has token_cache = true. Here it
    is done before, on a machine without GPUs. What is there already is kept, and a command that was stopped goes on.

    $ python -m data_pipeline tokenize recipes/demo.toml --workers 32
    $ python -m data_pipeline tokenize gsm8k.jsonl --tokenizer /models/Llama-2-7b-hf --kind prompt
        --prompt-field question --response-field answer

    Args:
        files: What to read where no recipe says it.
        work: How to work.
        rows: Instead of what the recipe says.
    """
    from data_pipeline.commands.formatting import format_bytes
    from data_pipeline.commands.opening import open_everything
    from data_pipeline.commands.tables import print_table, table
    from data_pipeline.tokens.token_check import token_files, token_folders

    request = read_request(files, work, rows)
    data = open_everything(dataclasses.replace(request.config, token_cache=True), work.processes, sys.stderr)
    made = table(["source"], ["documents", "with tokens", "tokens", "bad, skipped", "too long, left out", "cut"])
    for source, encoded in zip(data.sources, data.encoded, strict=True):
        assert encoded is not None, "every source is encoded"
        made.add_row(
            source.name,
            f"{source.num_documents:,}",
            f"{int((encoded.lengths > 0).sum()):,}",
            f"{int(encoded.lengths.sum(dtype='int64')):,}",
            *(f"{encoded.counts[what]:,}" for what in ("bad_records", "too_long", "cut")),
        )
    print_table(made)
    config = request.config
    folders = {folder: None for source in config.sources.values() for folder in token_folders(source, config.cache_dir)}
    for folder in folders:
        if paths := token_files(folder):
            print(f"{folder} holds {format_bytes(sum(path.stat().st_size for path in paths))} of tokens")
    if not config.token_cache and any(not source.is_examples for source in config.sources.values()):
        print("A run reads those of text only where its recipe says token_cache = true.")
    return 0
