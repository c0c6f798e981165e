"""A model, and how to ask it: on one device, or on all ranks of a sharded model together."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evals.agreement import gathered
from evals.scoring.architecture import can_share
from evals.scoring.deal import deal
from evals.scoring.eval_mode import eval_mode
from evals.scoring.forward import Batch, forward, make_batch
from evals.scoring.rows import Row, fit
from evals.scoring.stopping import Stopped
from evals.scoring.tries import Trie, alone, pack

if TYPE_CHECKING:
    from evals.scoring.generation import Generation, Prompt

__all__ = ["Answer", "Scorer", "Stopped"]

LARGEST_TRIE = 4096
"""Nodes in a trie: its mask has the square of that many elements."""


class Answer(NamedTuple):
    """What the model says of one row."""

    loglikelihood: float
    """log p(row.ids[first:] | row.ids[:first]) in nats, summed in fp64; nan where logits are not finite."""
    is_greedy: bool
    """Whether every scored token is the model's first choice."""


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A model, and how to ask it: on one device, or on all ranks of a sharded (ZeRO-3) model together.

    With `world_size` > 1 its methods are collectives: every rank calls them with the same arguments, does the same number
    of forwards, and gets all answers.
    """

    model: torch.nn.Module
    """A Hugging Face causal LM, or a DeepSpeed engine around one."""
    device: torch.device | str
    """Where the inputs go."""
    pad_id: int
    """A token id to fill rows with; which one makes no difference."""
    max_length: int
    """Tokens in the longest model input."""
    batch_tokens: int = 8192
    """Tokens per forward on each rank, padding included; a longer row goes alone. Changes speed and memory, not scores."""
    rank: int = 0
    """This process."""
    world_size: int = 1
    """Processes that ask together."""
    should_stop: Callable[[], bool] | None = None
    """Asked before every forward, equally often on all ranks; its answer must be the same on all. True ends it all."""
    progress: Callable[[int, int], None] | None = None
    """Called on rank 0 as progress(done, of how many): forwards in `score`, prompts in `generate`."""

    def score(self, rows: Sequence[Row]) -> list[Answer]:
        """Score every row.

        Raises:
            EvalError: a row's scored part is longer than `max_length`.
            Stopped: `should_stop` said yes.
        """
        rows = [fit(row, self.max_length)[0] for row in rows]
        inner: Any = getattr(self.model, "module", self.model)
        answers = self._ask(pack(rows, limit=min(self.batch_tokens, LARGEST_TRIE), attention=_attention(inner)))
        # What is not finite in one branch makes the others of its trie so: zero times infinity is not a number.
        lost = [index for index, answer in answers.items() if math.isnan(answer.loglikelihood)]
        answers |= self._ask([alone(index, rows[index]) for index in sorted(lost)])
        return [answers[index] for index in range(len(rows))]

    def _ask(self, tries: Sequence[Trie]) -> dict[int, Answer]:
        """Answers by row, of all ranks' batches."""
        batches = deal(tries, rank=self.rank, world_size=self.world_size, batch_tokens=self.batch_tokens)
        asked: list[tuple[list[Trie], Batch, Tensor]] = []
        with eval_mode(self.model):
            for done, batch in enumerate(batches, start=1):
                if self.should_stop is not None and self.should_stop():
                    raise Stopped
                made = make_batch(batch, self.pad_id)
                # Without waiting for the device, which works while the next batch is made.
                asked.append((batch, made, forward(self.model, made, self.device)))
                if self.progress is not None and self.rank == 0:
                    self.progress(done, len(batches))
        answers: dict[int, Answer] = {}
        for batch, made, values in asked:
            answers |= _by_row(batch, made, values)
        return _joined(answers, self.world_size) if batches else answers

    def generate(
        self, prompts: Sequence[Prompt], decode: Callable[[Sequence[int]], str], eos_ids: Collection[int]
    ) -> list[list[Generation]]:
        """Write what follows each prompt, once per sample; see evals.scoring.generation.

        Raises:
            Stopped: `should_stop` said yes.
        """
        from evals.scoring.generation import generate

        return generate(
            self.model, prompts, decode=decode, eos_ids=eos_ids, device=self.device, pad_id=self.pad_id,
            max_length=self.max_length, batch_tokens=self.batch_tokens, rank=self.rank, world_size=self.world_size,
            should_stop=self.should_stop, progress=self.progress,
        )  # fmt: skip


def _attention(model: Any) -> float | None:
    """Nodes at which attention with a mask costs as much as all else, or None if rows cannot share; see tries.

    A layer's matrices take about 24 h² operations per token, and attention 4 h per pair, at a third of the speed.
    """
    config = getattr(model, "config", None)
    return 2.0 * config.hidden_size if config is not None and can_share(config) else None


def _by_row(tries: Sequence[Trie], batch: Batch, values: Tensor) -> dict[int, Answer]:
    """Answers of a batch by row, from fp64 [targets, 2] in the batch's order."""
    ordered = np.empty(values.shape)
    ordered[batch.order] = values.cpu().numpy()
    answers, start = {}, 0
    for trie in tries:
        for row, count in zip(trie.rows, trie.num_targets, strict=True):
            log_p, is_first_choice = ordered[start : start + count].T
            total = float(log_p.sum())
            is_finite = math.isfinite(total)
            answers[row] = Answer(total if is_finite else math.nan, is_finite and bool(is_first_choice.all()))
            start += count
    return answers


def _joined(answers: dict[int, Answer], world_size: int) -> dict[int, Answer]:
    """The answers of all ranks, on every rank."""
    # In the same order on all ranks, which so take the same answer for a row that two of them had.
    return {index: answer for part in gathered(answers, world_size) for index, answer in part.items()}
