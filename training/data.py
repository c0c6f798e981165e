"""The run's stream, opened by all ranks, one after the other where there is work to do that others can use."""

from __future__ import annotations

from collections.abc import Callable

from data_pipeline.errors import PipelineError
from data_pipeline.stream.token_stream import TokenStream
from data_pipeline.stream.workers import PrefetchedStream, open_stream
from training.config import Config
from training.engine import raise_on_all_ranks, rank_0_first
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
            stream = open_stream(
                config.data, num_lanes=num_lanes, lanes=world.lanes(num_lanes), seed=config.run.seed, progress=progress
            )
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
