"""One forward for a batch of tries: log p of every target, with logits only where something is predicted.

Branches of a trie are kept apart by position ids and a mask [tries, 1, nodes, nodes], additive because every attention
implementation takes that. Padding sees itself, for a softmax over nothing is not a number.

The head is asked for the positions that predict, in chunks of bounded memory: for the time of the forward, the `forward`
of that one module is another. Under ZeRO-3, where its weight is whole only inside, DeepSpeed's hooks around it stay.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evals.scoring.architecture import is_known
from evals.scoring.tries import Ints, Trie

CHUNK_BYTES = {"cpu": 30 * 2**20, "cuda": 512 * 2**20}
"""Fp32 logits at a time. On the CPU a chunk that the allocator keeps for the next; its limit is 32 MiB."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tries as the model gets them, and what it is asked; on the CPU."""

    tokens: Ints
    """[tries, nodes], padded on the right."""
    positions: Ints
    """[tries, nodes]."""
    ends: Ints
    """[tries, nodes]; see tries. Padding is a subtree of its own."""
    sizes: Ints
    """[tries]: nodes of each."""
    is_branched: bool
    """Whether any trie has branches; else it is an ordinary batch."""
    nodes: Ints
    """[nodes that predict], ascending, counted through the flattened batch."""
    askers: Ints
    """[targets]: for each target the index in `nodes` of what predicts it, ascending."""
    targets: Ints
    """[targets]."""
    order: Ints
    """[targets]: where each target was in the tries' targets, one trie after the other."""


def make_batch(tries: Sequence[Trie], pad_id: int) -> Batch:
    """Pad tries to the size of the largest, and sort what they ask by node."""
    sizes = np.array([len(trie.tokens) for trie in tries])
    width = int(sizes.max())
    tokens = np.full((len(tries), width), pad_id)
    positions = np.zeros_like(tokens)
    ends = np.tile(np.arange(1, width + 1), (len(tries), 1))
    for index, trie in enumerate(tries):
        size = len(trie.tokens)
        tokens[index, :size], positions[index, :size], ends[index, :size] = trie.tokens, trie.positions, trie.ends
    predictors = np.concatenate([trie.predictors + index * width for index, trie in enumerate(tries)])
    nodes, askers = np.unique(predictors, return_inverse=True)
    order = np.argsort(askers, kind="stable")
    return Batch(
        tokens=tokens, positions=positions, ends=ends, sizes=sizes, nodes=nodes, askers=askers[order], order=order,
        is_branched=not all(trie.is_chain for trie in tries),
        targets=np.concatenate([trie.targets for trie in tries])[order],
    )  # fmt: skip


def forward(model: nn.Module, batch: Batch, device: torch.device | str) -> Tensor:
    """Answer a batch: fp64 [targets, 2], in the batch's order, on the device.

    The first column is the target's log-probability in nats, from logits in fp32; the second is 1 where the target is the
    model's first choice and else 0. The model, or the engine around it, is called once.
    """
    arguments: dict[str, Any] = {"input_ids": torch.from_numpy(batch.tokens).to(device), "use_cache": False}
    if batch.is_branched:
        arguments["position_ids"] = torch.from_numpy(batch.positions).to(device)
        arguments["attention_mask"] = branch_mask(torch.from_numpy(batch.ends).to(device), _dtype(model))
    else:
        is_token = np.arange(batch.tokens.shape[1]) < batch.sizes[:, None]
        arguments["attention_mask"] = torch.from_numpy(is_token.astype(np.int64)).to(device)
    inner: Any = getattr(model, "module", model)
    if not is_known(getattr(inner, "config", None)):
        logits: Tensor = model(**arguments).logits
        return _answers(logits, batch, nn.Identity(), logits.shape[-1])
    with _asked(inner.get_output_embeddings(), batch, inner.config.vocab_size):
        answers: Tensor = model(**arguments).logits
    return answers


def branch_mask(ends: Tensor, dtype: torch.dtype) -> Tensor:
    """[tries, 1, queries, keys]: 0 where the key is the query's node or an ancestor of it, else -inf.

    Args:
        ends: [tries, nodes], see tries.
        dtype: of the mask.
    """
    node = torch.arange(ends.shape[1], device=ends.device)
    is_seen = (node <= node[:, None]) & (node[:, None] < ends[:, None, :])
    mask = torch.zeros(is_seen.shape, dtype=dtype, device=ends.device).masked_fill_(~is_seen, -torch.inf)
    return mask.unsqueeze(1)


def _dtype(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


@contextlib.contextmanager
def _asked(head: nn.Module, batch: Batch, vocab_size: int) -> Iterator[None]:
    """Within this the head answers the batch, whoever had replaced its forward before."""
    before, was_replaced = head.forward, "forward" in vars(head)
    head.forward = lambda hidden: _answers(hidden, batch, before, vocab_size)
    try:
        yield
    finally:
        if was_replaced:
            head.forward = before
        else:
            del head.forward


def _answers(states: Tensor, batch: Batch, head: Callable[[Tensor], Tensor], vocab_size: int) -> Tensor:
    """What `forward` returns, from states [tries, nodes, ...] of which the head makes logits."""
    device = states.device
    chosen = states.flatten(0, 1).index_select(0, torch.from_numpy(batch.nodes).to(device))
    askers, targets = (torch.from_numpy(part).to(device) for part in (batch.askers, batch.targets))
    rows = max(1, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // (4 * vocab_size))
    starts = range(0, len(chosen), rows)
    bounds = np.searchsorted(batch.askers, [*starts, len(chosen)]).tolist()
    answers = [
        _score(head(chosen[start : start + rows]), askers[first:last] - start, targets[first:last])
        for start, (first, last) in zip(starts, itertools.pairwise(bounds), strict=True)
    ]
    return torch.cat(answers)


def _score(logits: Tensor, askers: Tensor, targets: Tensor) -> Tensor:
    """[targets, 2] for logits [positions, vocab], which it overwrites; target k is asked at position askers[k]."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    of_target = logits[askers, targets]
    largest, choice = logits.max(dim=-1)
    # A largest one that is infinite or not a number makes the answer not a number.
    normalizer = largest + logits.sub_(largest[:, None]).exp_().sum(-1).log_()
    return torch.stack(((of_target - normalizer[askers]).double(), (choice[askers] == targets).double()), dim=1)
