"""How far a run is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Progress:
    """How far the run is; saved in every checkpoint."""

    step: int = 0
    tokens_seen: int = 0
    """Input tokens of all ranks."""
    data_hash: str = ""
    """Running hash of every batch so far, without those that a rewind has undone."""
    seconds: float = 0.0
    """Wall time of training, without start-up, evaluation and saving."""
    eval_seconds: float = 0.0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    recent_losses: list[float] = field(default_factory=list)
    """Of the last applied steps, for the guard against loss spikes."""
    rewinds: int = 0
    """Times that it went back to a checkpoint after a loss spike."""
    rewinds_in_a_row: int = 0
    """Of these, without a checkpoint in between."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return asdict(self)
