"""What the ranks tell each other between two steps, in one all-reduce: stop requests, and how far a save is."""

from __future__ import annotations

from training.ranks import distributed
from training.ranks.lifeline import Lifeline
from training.saving import Saver
from training.stopping import StopRequest


class Boundary:
    """Crossed by all ranks together, after every step and every batch of an evaluation."""

    def __init__(self, stop: StopRequest, saver: Saver, lifeline: Lifeline) -> None:
        self._stop, self._saver, self._lifeline = stop, saver, lifeline

    def cross(self, what: str) -> bool:
        """Let the save on its way go on; whether any rank was asked to stop (a collective).

        `what` says where this is, for the lifeline.

        Raises:
            CheckpointError: checkpoint.max_failed saves in a row have failed.
        """
        saver = self._saver
        self._lifeline.at(what)
        asked, *signals = distributed.sum_over_ranks([float(self._stop.is_local()), *saver.signals()])
        saver.go_on(signals)
        return asked > 0
