"""The run's stream, opened by all ranks, one after the other where there is work to do that others can use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data_pipeline.errors import PipelineError
from data_pipeline.stream.epoch import epoch_rows
from data_pipeline.stream.token_stream import TokenStream
from data_pipeline.stream.workers import PrefetchedStream, open_stream
from training.config import Config
from training.files import read_json
from training.length import needs_epoch
from training.ranks.distributed import from_rank_0, raise_on_all_ranks, rank_0_first
from training.world import World


def open_data(
    config: Config, world: World, progress: Callable[[str, int, int], None]
) -> TokenStream | PrefetchedStream:
    """Open this rank's lanes (a collective). The first rank indexes documents and encodes examples, the others find that done.

    Args:
        config: of the run.
        world: this rank and all others.
        progress: is told what is done, how far it is, and of how much.

    Raises:
        PipelineError: on all ranks, when one of them can't read its data.
    """
    num_lanes = config.train.global_batch_rows
    stream, problem = None, None
    with rank_0_first(world):
        try:
            lanes = world.lanes(num_lanes, config.train.sequence_parallel)
            stream = open_stream(config.data, num_lanes=num_lanes, lanes=lanes, seed=config.run.seed, progress=progress)
        except PipelineError as error:
            problem = error
    try:
        raise_on_all_ranks(problem, PipelineError, world)
    except PipelineError:
        if stream is not None:
            stream.close()
        raise
    assert stream is not None
    return stream


def length_of_epoch(config: Config, stream: TokenStream | PrefetchedStream, world: World) -> dict[str, Any] | None:
    """Rows of an epoch and whether they were counted or estimated, where the recipe asks in epochs (a collective).

    A run that goes on keeps the number that it was started with.

    Raises:
        PipelineError: on all ranks, when the first can't read its data.
    """
    if not needs_epoch(config):
        return None
    found, problem = None, None
    if world.rank == 0:
        found = (read_json(config.run.dir / "run.json") or {}).get("epoch")
        try:
            found = found or epoch_rows(stream.data, seed=config.run.seed)._asdict()
        except PipelineError as error:
            problem = error
    raise_on_all_ranks(problem, PipelineError, world)
    length: dict[str, Any] = from_rank_0(lambda: found, world)
    return length
