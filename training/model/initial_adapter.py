"""The adapter that a run starts with: what another run, or PEFT, has saved."""

from __future__ import annotations

from pathlib import Path

from monteclora import Adapter
from monteclora.errors import AdapterError
from monteclora.peft_format import load_weights
from monteclora.stored_adapter import read_adapter
from training.model.build import folder_fingerprint, gathered
from training.ranks.distributed import from_rank_0, raise_on_all_ranks
from training.world import World


def load_adapter(adapter: Adapter, folder: Path, world: World) -> None:
    """Set the values of an attached adapter to those saved in `folder` (a collective).

    Raises:
        AdapterError: on all ranks, when one of them can't read the files or finds other weights in them than rank 0, or
            when what is saved does not fit.
    """
    problem, weights = None, None
    try:
        read_adapter(folder, adapter.layers, ())
        weights = folder_fingerprint(folder)
    except (AdapterError, OSError) as error:
        problem = error
    raise_on_all_ranks(problem, AdapterError, world)
    # Loading is a collective, which a rank that alone found the values unfit would leave.
    if weights != from_rank_0(lambda: weights, world):
        problem = AdapterError(f"{folder} holds other weights here than on rank 0; copy the same to every node")
    raise_on_all_ranks(problem, AdapterError, world)
    load_weights(adapter, folder, gather=gathered)
