"""A frozen linear layer and its low-rank update as one node of the autograd graph.

::

    y = W x + b + c B A_eff drop(x)        A_eff = A + diag(scale) Z        (without noise: A_eff = A)

One node in place of a dozen: the sum is made in place, the gradient of x is collected in one buffer, and backward draws
Z again from its seed, so that nothing but x, the parameters, A_eff drop(x) [tokens, r] and (with dropout) one bit-mask is
kept from forward to backward. Recomputing A_eff drop(x) too would save r / in of what x takes, for 1 to 7 % of the time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from monteclora.distributions import wide


def standard_normal(like: Tensor, seed: int) -> Tensor:
    """The Z of a seed: standard normals of the shape and device of `like`, in fp32 (or fp64)."""
    generator = torch.Generator(device=like.device).manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=wide_dtype(like), device=like.device)


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """fp64 for fp64, else fp32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def low_rank_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    *,
    scaling: float,
    dropout: float = 0.0,
    scale: Tensor | None = None,
    seed: int | None = None,
) -> Tensor:
    """Compute weight x + bias + scaling * b a_eff drop(x).

    Products are taken in the dtype of x (under autocast, in autocast's); a and b may be wider.

    Args:
        x: [..., in].
        weight: [out, in].
        bias: [out], or None.
        a: [r, in].
        b: [out, r].
        scaling: the factor c.
        dropout: probability of zeroing a feature of x on the low-rank path.
        scale: [r] in fp32 (or fp64), the noise's standard deviation in each row of a.
        seed: of the noise Z that `scale` scales; both or neither.

    Returns:
        [..., out]
    """
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        # Inside a custom node autocast would act on forward but not on backward.
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        with torch.autocast(device, enabled=False):
            rows = _LowRankLinear.apply(x, weight, bias, a, b, scale, scaling, dropout, seed)
    else:
        rows = _LowRankLinear.apply(x, weight, bias, a, b, scale, scaling, dropout, seed)
    # Outside the node: autograd lets nobody write into a view that a custom node returns, as an in-place ReLU would.
    output: Tensor = rows.view(*x.shape[:-1], rows.shape[-1])
    return output


def zero_gradient(parameter: Tensor) -> Tensor:
    """The parameter as it is, with a gradient of zeros.

    Not detached: under ZeRO-3 a parameter that gets no gradient keeps that of an earlier step.
    """
    result: Tensor = _ZeroGradient.apply(parameter)
    return result


class _ZeroGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor) -> Tensor:
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.zeros_like(grads[0])


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: Tensor | None,
        scaling: float,
        dropout: float,
        seed: int | None,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        kept = torch.empty_like(rows, dtype=torch.bool).bernoulli_(1 - dropout) if dropout else None
        z = standard_normal(a, seed) if scale is not None and seed is not None else None
        hidden = F.linear(_masked(rows, kept), _effective(a, scale, z, x.dtype))
        y = F.linear(rows, weight, bias)
        factor = scaling / (1 - dropout)
        y.addmm_(hidden, b.to(x.dtype).T, alpha=factor)
        # The parameters themselves are saved, not what they hold now: under ZeRO-3 they are gathered again for backward.
        ctx.save_for_backward(x, weight, a, b, scale, kept, hidden)
        ctx.factor, ctx.seed = factor, seed
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, scale, kept, hidden = ctx.saved_tensors
        factor = ctx.factor
        needs_x, needs_weight, needs_bias, needs_a, needs_b, needs_scale, *_ = ctx.needs_input_grad
        rows = x.reshape(-1, x.shape[-1])
        grad_x = grad_weight = grad_bias = grad_b = grad_scale = None

        z = standard_normal(a, ctx.seed) if scale is not None else None
        a_eff, b_cast = _effective(a, scale, z, x.dtype), b.to(x.dtype)
        grad_hidden = grad @ b_cast
        if needs_x:
            grad_x = grad @ weight
            if kept is None:
                grad_x.addmm_(grad_hidden, a_eff, alpha=factor)
            else:
                # Not add_(…, alpha=factor): torch.compile folds that into the product and loses the factor.
                grad_x.add_((grad_hidden @ a_eff).mul_(kept).mul_(factor))
            grad_x = grad_x.view_as(x)
        if needs_weight:
            grad_weight = grad.T @ rows
        if needs_bias:
            grad_bias = grad.sum(0)
        masked = _masked(rows, kept)
        # With beta=0 the first argument is not read: the factor comes with the product, without a pass of its own.
        grad_a = torch.addmm(a_eff, grad_hidden.T, masked, beta=0, alpha=factor)
        if needs_scale and z is not None:
            grad_scale = z.mul_(grad_a).sum(1)
        if needs_b:
            grad_b = torch.addmm(b_cast, grad.T, hidden, beta=0, alpha=factor).to(b.dtype)
        return (
            grad_x,
            grad_weight,
            grad_bias,
            grad_a.to(a.dtype) if needs_a else None,
            grad_b,
            grad_scale,
            *(None,) * 3,
        )


def _effective(a: Tensor, scale: Tensor | None, z: Tensor | None, dtype: torch.dtype) -> Tensor:
    if scale is None or z is None:
        return a.to(dtype)
    return torch.addcmul(wide(a), scale.unsqueeze(1), z).to(dtype)


def _masked(rows: Tensor, kept: Tensor | None) -> Tensor:
    return rows if kept is None else rows * kept
