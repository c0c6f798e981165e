"""The output head that computes the loss at target positions, chunk by chunk, and never all logits.

For hidden states h_t, head weight W and target y_t of the T target positions::

    loss = sum_t -ln softmax(W h_t)[y_t]        d loss / d (W h_t) = softmax(W h_t) - onehot(y_t)

Both are made from the same chunk of logits, so the gradients with respect to h and W are computed in the forward, while
the chunk is there; backward multiplies them by its scalar. Under ZeRO-3, where the weight is whole only inside the head's
own forward, that is where it is used, and DeepSpeed's hooks around the head stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monteclora import HiddenKey

CHUNK_BYTES = {"cpu": 30 * 2**20, "cuda": 512 * 2**20}
"""Largest chunk of fp32 logits. On the CPU one that the allocator keeps for the next, for which its limit is 32 MiB: pages
fresh from the system cost as much as the softmax. On a GPU one of thousands of positions, which its matrix products want."""


@dataclass(frozen=True, kw_only=True)
class LossRequest:
    """Ask for (2,) numbers in fp32, in nats: the sum of the targets' cross-entropy, and HiddenKey's compensation or 0.

    Gradients are those of the sum of the two.
    """

    index: Tensor
    """int64 (T,): positions with a target, counted through the flattened rows; no two are equal."""

    targets: Tensor
    """int64 (T,): the token to predict at each."""

    compensation: HiddenKey | None = None
    """What compares this pass with another; None: there is none."""

    reference: Tensor | None = None
    """The other pass at `index`, a constant: what a HiddenRequest gave."""

    both_branches: bool = False
    """Both passes are in this forward, the second behind the first on the batch axis; `index` counts through the first.
    The cross-entropy is their mean, and gradients go through both."""

    def __post_init__(self) -> None:
        if (self.compensation is not None) != (self.reference is not None or self.both_branches):
            raise ValueError(
                "a compensation compares two passes: give a reference, or both branches, with it and only then"
            )


@dataclass(frozen=True, kw_only=True)
class HiddenRequest:
    """Ask for what a later LossRequest takes as its `reference`: the hidden states (T, hidden) at `index`, as a constant."""

    index: Tensor
    """int64 (T,): see LossRequest."""


class LossHead:
    """Lets the output head of a model answer requests; parameters, their names and the module's hooks stay."""

    def __init__(self, model: Any) -> None:
        """Take over the `forward` of the model's output embedding, an attribute of that one module."""
        self.module: nn.Module = model.get_output_embeddings()
        self._own_forward: Callable[..., Tensor] = self.module.forward
        self._request: LossRequest | HiddenRequest | None = None
        self.module.forward = self._forward

    def remove(self) -> None:
        """Give the module its own forward back."""
        del self.module.forward

    @contextlib.contextmanager
    def asked(self, request: LossRequest | HiddenRequest) -> Iterator[None]:
        """While inside, the model's `logits` are what the request asks for; outside they are logits."""
        self._request = request
        try:
            yield
        finally:
            self._request = None

    def _forward(self, hidden: Tensor) -> Tensor:
        """Answer for hidden [rows, seq_len, hidden]."""
        request = self._request
        if request is None:
            return self._own_forward(hidden)
        states = hidden.flatten(0, 1)
        if isinstance(request, HiddenRequest):
            chosen = states.index_select(0, request.index)
            return (chosen if self._is_plain else self._own_forward(chosen)).detach()
        index = request.index
        if request.both_branches:
            index = torch.cat([index, index + len(states) // 2])
        if not self._is_plain:
            return self._all_at_once(states.index_select(0, index), request)
        result: Tensor = _ChunkedLoss.apply(states, self.module.weight, index, request, torch.is_grad_enabled())
        return result

    @property
    def _is_plain(self) -> bool:
        """Whether the head is a matrix and nothing else, no adapter for one."""
        return type(self.module) is nn.Linear and self.module.bias is None

    def _all_at_once(self, chosen: Tensor, request: LossRequest) -> Tensor:
        """The answer by the head's own forward, once: an adapter's noise and penalty belong to a single call."""
        branches = _wide(self._own_forward(chosen)).chunk(2 if request.both_branches else 1)
        loss = torch.stack([F.cross_entropy(b, request.targets, reduction="sum") for b in branches]).mean()
        compensation = torch.zeros_like(loss)
        if request.compensation is not None:
            second = branches[1] if request.reference is None else request.reference
            compensation = request.compensation.compensation(branches[0], second)
        return torch.stack((loss, compensation))


class _ChunkedLoss(torch.autograd.Function):
    """(2,) sums of a LossRequest for states [tokens, hidden] and weight [vocab, hidden]."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, index: Tensor, request: LossRequest, has_gradients: bool
    ) -> Tensor:
        """The sums, chunk by chunk, with the gradients that are needed made on the way."""
        dtype = torch.promote_types(weight.dtype, torch.float32)
        num_branches = 2 if request.both_branches else 1
        chosen = states.index_select(0, index)
        grad_chosen = torch.empty_like(chosen) if has_gradients else None
        grad_weight = torch.zeros_like(weight, dtype=dtype) if has_gradients and ctx.needs_input_grad[1] else None
        sums = torch.zeros(2, dtype=dtype, device=states.device)
        rows = chunk_rows(len(weight), states.device.type)
        for start in range(0, len(request.targets), rows):
            part = slice(start, start + rows)
            hidden = [branch[part] for branch in chosen.chunk(num_branches)]
            logits = [_wide(h @ weight.T) for h in hidden]
            second = None if request.reference is None else _wide(request.reference[part] @ weight.T)
            values, grads = _score(logits, second, request.targets[part], request.compensation, has_gradients)
            sums += values
            if grad_chosen is None:
                continue
            for h, grad, into in zip(hidden, grads, grad_chosen.chunk(num_branches), strict=True):
                grad = grad.to(weight.dtype)
                torch.mm(grad, weight, out=into[part])
                if grad_weight is not None:
                    _add_product(grad_weight, grad.T, h)
            # Not beside those of the next chunk.
            del logits, second, grads, grad
        ctx.num_tokens = len(states)
        ctx.has_compensation = request.compensation is not None
        ctx.save_for_backward(index, grad_chosen, grad_weight)
        return sums

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients and put those of the states at their places."""
        index, grad_chosen, grad_weight = ctx.saved_tensors
        (grad_sums,) = grad_outputs
        scale = grad_sums[0]
        if ctx.has_compensation and scale.device.type == "cpu" and scale != grad_sums[1]:
            raise RuntimeError("the two numbers of a LossRequest are to be added up before backward")
        scaled = (_wide(grad_chosen) * scale).to(grad_chosen.dtype)
        grad_states = grad_chosen.new_zeros(ctx.num_tokens, grad_chosen.shape[1]).index_copy_(0, index, scaled)
        if grad_weight is not None:
            # In one pass: the scale is not rounded to half precision, and there is no further copy in fp32.
            grad_weight = torch.mul(grad_weight, scale, out=torch.empty_like(grad_weight, dtype=grad_chosen.dtype))
        return grad_states, grad_weight, None, None, None


def chunk_rows(vocab_size: int, device_type: str) -> int:
    """Target positions per chunk."""
    return max(1, CHUNK_BYTES.get(device_type, CHUNK_BYTES["cuda"]) // (4 * vocab_size))


def _score(
    logits: list[Tensor], second: Tensor | None, targets: Tensor, hidden_key: HiddenKey | None, has_gradients: bool
) -> tuple[Tensor, list[Tensor]]:
    """The two numbers of a chunk, for logits [positions, vocab] of one branch or two, and their sum's gradients."""
    targets = targets.unsqueeze(1)
    log_p = [torch.log_softmax(scores, dim=-1) for scores in logits]
    loss = torch.stack([-scores.gather(1, targets).sum() for scores in log_p]).mean()
    compensation, more = torch.zeros_like(loss), None
    if hidden_key is not None:
        with torch.set_grad_enabled(has_gradients):
            leaves = [scores.detach().requires_grad_(has_gradients) for scores in logits]
            compensation = hidden_key.compensation(leaves[0], leaves[1] if second is None else second)
        more = torch.autograd.grad(compensation, leaves) if has_gradients else None
    values = torch.stack((loss, compensation.detach()))
    if not has_gradients:
        return values, []
    for k, grad in enumerate(log_p):
        # softmax - onehot, in the memory of log_p
        grad.exp_()
        grad.scatter_(1, targets, grad.gather(1, targets) - 1)
        if len(logits) > 1:
            grad /= len(logits)
        if more is not None:
            grad += more[k]
    return values, log_p


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to `total`; without an intermediate where all have the same precision."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in fp32, in fp64 if it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
