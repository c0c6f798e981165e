"""Opening what a stream reads: the sources with their indexes, the tokenizer, and the tokens kept on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from data_pipeline.config import DataConfig
from data_pipeline.encoding.examples import Encoder
from data_pipeline.encoding.loading import load_tokenizer
from data_pipeline.encoding.tokenizer import Tokenizer
from data_pipeline.sources.errors import DamagedRecordError, DataError
from data_pipeline.sources.source import Source, open_source

if TYPE_CHECKING:
    from data_pipeline.tokens.encoded import EncodedSource

Progress = Callable[[str, int, int], None]
"""(what is done, how much of it, of how much)."""

_SAMPLED_BLOCKS, _SAMPLED_OF_BLOCK, _SAMPLED_CHARACTERS = 32, 4, 5000


@dataclass(frozen=True)
class OpenedData:
    """What streams of one configuration read; several streams can share it.

    Attributes:
        config: the settings.
        tokenizer: the tokenizer.
        sources: as in config.sources.
        encoders: by source, what makes examples of its records.
        encoded: by source, its tokens on disk; None where records are encoded when their turn comes.
    """

    config: DataConfig
    tokenizer: Tokenizer
    sources: Sequence[Source]
    encoders: Sequence[Encoder]
    encoded: Sequence[EncodedSource | None]


def open_data(config: DataConfig, *, workers: int | None = None, progress: Progress | None = None) -> OpenedData:
    """Open all that a configuration names; indexes, and encodes examples, where that is not done yet.

    Args:
        config: what to read, and how.
        workers: processes that index and encode; by default the cores of this machine that may be used.
        progress: told about work that takes time.

    Raises:
        DataError: a source cannot be read, is empty, or has examples that the settings refuse.
        TokenizerError: the tokenizer cannot be read or lacks a token that the settings ask for.
    """
    if not config.sources:
        raise DataError("sources is empty; name at least one source of documents")
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    tokenizer = load_tokenizer(config.tokenizer, config.tokenizer_engine)
    encoders = [Encoder(source, config, tokenizer) for source in config.sources.values()]
    sources = [
        open_source(
            name,
            source,
            cache_dir=config.cache_dir,
            cache_bytes=int(config.cache_gb * 1e9),
            workers=workers,
            columns=encoder.columns,
            progress=progress,
        )
        for (name, source), encoder in zip(config.sources.items(), encoders, strict=True)
    ]
    if config.tokenizer_engine == "auto" and any(
        tokenizer.check_engine(_sample(source, encoder)) for source, encoder in zip(sources, encoders, strict=True)
    ):
        # The processes that encode load the tokenizer anew, and try it with other texts.
        encoding = replace(config, tokenizer_engine="reference")
    else:
        encoding = config
    encoded = [
        _encode(source, encoding, tokenizer, workers, progress)
        if source.config.is_examples or config.token_cache
        else None
        for source in sources
    ]
    return OpenedData(config, tokenizer, sources, encoders, encoded)


def _sample(source: Source, encoder: Encoder) -> Iterator[str]:
    """Beginnings of texts from all over a source, to try the fast tokenizer with; the same on every rank."""
    starts = source.block_starts
    step = -(-(len(starts) - 1) // _SAMPLED_BLOCKS)
    for start, stop in zip(starts[:-1:step].tolist(), starts[1::step].tolist(), strict=True):
        for record in source.records(start, min(stop, start + _SAMPLED_OF_BLOCK)):
            if not isinstance(record, DamagedRecordError):
                yield from (text[:_SAMPLED_CHARACTERS] for name in encoder.columns for text in _texts(record.get(name)))


def _texts(value: Any) -> Iterator[str]:
    """All texts in a field of a record, those of its messages too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _encode(
    source: Source, config: DataConfig, tokenizer: Tokenizer, workers: int, progress: Progress | None
) -> EncodedSource:
    # Loaded where it is needed: it brings what encodes in parallel.
    from data_pipeline.tokens.encoded import encode_source

    return encode_source(source, config, tokenizer, workers=workers, progress=progress)
