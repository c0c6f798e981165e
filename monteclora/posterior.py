"""The variational parameters of MonteCLoRA and their draws, one transformer block at a time (arXiv 2411.04358).

For each of the L adapted layers of a block, in the notation of `monteclora.distributions`::

    pi ~ softmax-normal(t)                    t [N], the mixture weights' log concentrations
    Sigma_j = max(exp(2 s_j) chi2_r, floor)   s [r], log standard deviations
    scale_j = eps ||pi||_2 Sigma_j^1/2        what multiplies the layer's standard normal noise

All of this is arithmetic on a handful of numbers, so its cost is the number of operations, not their size. A block's
layers are therefore drawn together: the same twenty operations for seven layers as for one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.hooks import RemovableHandle

from monteclora.config import MonteCLoRAConfig
from monteclora.controls import Controls
from monteclora.distributions import VARIANCE_FLOOR, chi_square, logistic_normal, sample_simplex, sample_std, wide
from monteclora.errors import AdapterError
from monteclora.penalty import Draw, kl_gradient, variational_penalty

POSTERIOR = "monteclora"
"""Name of the child of a block that holds the variational parameters of its layers."""


class LayerDraw(NamedTuple):
    """One layer's part of a draw."""

    scale: Tensor
    """Standard deviation of the noise in each of the r rows of A, eps ||pi|| Sigma^1/2 [r]; with the `sampled`
    estimator that of each of the N Gaussians, eps Sigma^1/2."""
    pi: Tensor
    """Mixture weights [N]."""
    seed: int
    """Seed of the layer's standard normals."""


class BlockPosterior(nn.Module):
    """s and t of the adapted layers of one block, drawn once in every forward of the block.

    Under ZeRO-3 a parameter is whole only inside its own module's forward, so everything that needs s and t is computed
    in this one, the penalty and its gradient included: after backward the gradients are those of
    loss + controls.penalty_weight * (the sum of the layers' penalties). `last_draw` holds what the penalty of the
    latest training forward is a function of, detached, for logging. A layer that runs twice in a forward of its block is
    drawn twice, and the penalty is counted with each draw.

    Noise comes from torch's default generators at the moment it is used, and none is stored: whoever seeds them decides
    the draw, and recomputation of activations, which restores them, replays it.
    """

    log_std: nn.Parameter
    """s [R], the layers' one after the other; drawn from U[0, 1)"""
    log_concentration: nn.Parameter
    """t [L, N], a row per layer; drawn from U[0, 1)"""

    def __init__(
        self,
        block: str,
        ranks: Mapping[str, int],
        config: MonteCLoRAConfig,
        controls: Controls,
        *,
        generators: Sequence[torch.Generator],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Make the parameters for the block of this name.

        Args:
            block: name of the block in the model.
            ranks: the layers by their name in the model, and their ranks.
            config: settings of the adapter.
            controls: of the adapter.
            generators: of each layer's first values.
            device: of the parameters.
            dtype: of the parameters.
        """
        super().__init__()
        self.block, self.config, self.controls = block, config, controls
        self.layers, self.ranks = tuple(ranks), tuple(ranks.values())
        self.last_draw: Draw | None = None
        self._is_running = False
        self._waiting = _NOTHING_WAITS
        self._shares: dict[int, float] = {}
        """The share of the penalty in the draws that a layer started, for their recomputation."""
        first_s = [torch.rand(r, generator=g, device="cpu") for r, g in zip(self.ranks, generators, strict=True)]
        first_t = [torch.rand(config.num_samples, generator=g, device="cpu") for g in generators]
        self.log_std = nn.Parameter(torch.cat(first_s).to(device=device, dtype=dtype))
        self.log_concentration = nn.Parameter(torch.stack(first_t).to(device=device, dtype=dtype))
        self._sizes: _Sizes | None = None
        self._hooks: tuple[RemovableHandle, ...] = ()

    def attach(self, block: nn.Module) -> None:
        """Become the child of `block`, and draw once in each of its forwards."""
        block.add_module(POSTERIOR, self)
        self._hooks = (
            block.register_forward_pre_hook(self.begin),
            block.register_forward_hook(self.end, always_call=True),
        )

    def detach(self, block: nn.Module) -> None:
        """Leave `block`."""
        delattr(block, POSTERIOR)
        for hook in self._hooks:
            hook.remove()
        self._hooks = ()

    def begin(self, block: nn.Module, arguments: Any) -> None:
        """Note that the block runs (a forward pre-hook of it)."""
        self._is_running, self._waiting = True, _NOTHING_WAITS

    def end(self, block: nn.Module, arguments: Any, output: Any) -> None:
        """Forget what nobody took of the draw (a forward hook of the block, also called when the forward fails)."""
        self._is_running, self._waiting = False, _NOTHING_WAITS

    @property
    def is_active(self) -> bool:
        """Whether the layers' A is random in the next forward."""
        return self.controls.sample is not None or (self.training and self.controls.is_random)

    def layer(self, index: int) -> LayerDraw:
        """The part of layer `index` of a draw; a layer that is called without its block draws for itself.

        The first layer of a block to run draws for all, and not a hook of the block: activation checkpointing of
        transformers leaves hooks outside of what it recomputes, and a draw has to be inside to be made again.

        Raises:
            AdapterError: activation checkpointing recomputes a part of the block, whose draw was made outside of it or
                for layers outside of it.
        """
        backward, is_recorded = torch._C._current_graph_task_id(), torch.is_grad_enabled()
        parts = self._waiting.parts if self._waiting.backward == backward else {}
        if index in parts and (self._waiting.is_recorded or not is_recorded):
            return parts.pop(index)
        if backward == -1:
            if index in parts and self._is_running:
                raise AdapterError(
                    f"{self._name} runs with gradients in one part and without in another, as under activation "
                    f"checkpointing of a part (reentrant); checkpoint {self._name} as a whole"
                )
            self._shares[index] = 1.0 if self._is_running else 1 / len(self.layers)
        elif index not in self._shares:
            raise AdapterError(
                f"activation checkpointing recomputes {self.layers[index]} by itself, but it was drawn with the other "
                f"layers of {self._name}; checkpoint that as a whole"
            )
        share = self._shares[index]
        drawn = dict(enumerate(self.draw(share)))
        own = drawn.pop(index)
        self._waiting = _Waiting(drawn if share == 1 else {}, backward, is_recorded)
        return own

    def draw(self, share: float = 1.0) -> list[LayerDraw]:
        """Draw for every layer, and join this share of the penalty's gradient."""
        scale, pi, seed = self(share)
        rows = zip(scale.split(self.ranks), pi.unbind(), strict=True)
        return [LayerDraw(row, weights, seed + number) for number, (row, weights) in enumerate(rows)]

    def forward(self, share: float = 1.0) -> tuple[Tensor, Tensor, int]:
        """Draw every layer's scale [R] and pi [L, N], a share of the penalty's gradient joined to them, and a seed."""
        s, t = wide(self.log_std), wide(self.log_concentration)
        sizes = self.sizes(s)
        generator, seed = self._randomness(s.device)
        chi2 = chi_square(sizes.rank, generator)
        z = torch.randn(t.shape, generator=generator, dtype=t.dtype, device=t.device)
        weight = share * self.controls.penalty_weight if self.training else 0.0
        estimate = _collapsed if self.config.estimator == "collapsed" else _sampled
        scale, std, pi = estimate(s, t, chi2, z, sizes, weight, self.config)
        if self.training:
            self.last_draw = Draw(s.detach(), t.detach(), std.detach(), pi.detach())
        return scale, pi, seed

    def sizes(self, like: Tensor) -> _Sizes:
        """The layers' ranks as tensors on the device of `like`."""
        # Not buffers: DeepSpeed and model.to(bf16) would round them.
        if self._sizes is None or self._sizes.rank.device != like.device or self._sizes.rank.dtype != like.dtype:
            # What is made in inference mode could never take part in a training forward.
            with torch.inference_mode(False):
                ranks = torch.tensor(self.ranks, device=like.device)
                layer = torch.arange(len(self.ranks), device=like.device)
                layer = layer.repeat_interleave(ranks, output_size=sum(self.ranks))
                members = torch.zeros(len(self.ranks), len(layer), dtype=like.dtype, device=like.device)
                members[layer, torch.arange(len(layer), device=like.device)] = 1
                self._sizes = _Sizes(ranks.to(like.dtype)[layer], layer, members)
        return self._sizes

    def extra_repr(self) -> str:
        """Short description for `print(model)`."""
        return f"ranks={list(self.ranks)}, num_samples={self.config.num_samples}"

    @property
    def _name(self) -> str:
        return self.block or "the model"

    def _randomness(self, device: torch.device) -> tuple[torch.Generator | None, int]:
        """Generator of the block's draw (None: the default one) and the seed of its first layer's noise."""
        if self.controls.sample is None:
            # On the CPU, where reading a number back does not wait for a GPU.
            return None, int(torch.randint(2**62, (), device="cpu"))
        digest = hashlib.sha256(f"{self.controls.sample}:{self.block}".encode()).digest()
        seed = int.from_bytes(digest[:8], "big") >> 2
        return torch.Generator(device=device).manual_seed(seed), seed + 1


class _Waiting(NamedTuple):
    """What is left of a draw, and for whom: elsewhere it would belong to another forward or lack its graph."""

    parts: dict[int, LayerDraw]
    """Of layers that have not run yet, by index."""
    backward: int
    """The backward that recomputed the draw; -1: none, it was made in a forward."""
    is_recorded: bool
    """Whether autograd recorded the draw."""


_NOTHING_WAITS = _Waiting({}, -1, True)


class _Sizes(NamedTuple):
    rank: Tensor
    """r of each dimension's layer [R]"""
    layer: Tensor
    """index of each dimension's layer [R]"""
    members: Tensor
    """1 where a dimension belongs to a layer [L, R]"""


def _collapsed(
    s: Tensor, t: Tensor, chi2: Tensor, z: Tensor, sizes: _Sizes, weight: float, config: MonteCLoRAConfig
) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = _CollapsedDraw.apply(s, t, chi2, z, sizes, weight, config)
    return result


def _sampled(
    s: Tensor, t: Tensor, chi2: Tensor, z: Tensor, sizes: _Sizes, weight: float, config: MonteCLoRAConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """As the paper states it and as autograd differentiates it: the reference, without closed forms."""
    std, pi = sample_std(s, chi2), sample_simplex(t, z)
    if weight:
        penalty = variational_penalty(Draw(s, t, std, pi), sizes.rank, config)
        pi = _JoinPenalty.apply(pi, penalty, weight)
    return config.noise_scale * std, std, pi


class _CollapsedDraw(torch.autograd.Function):
    """(scale [R], Sigma^1/2 [R], pi [L, N]) and the gradient of loss + weight * penalty, in closed form.

    With g = d loss / d scale: d loss / d s_j = g_j scale_j, unless the floor holds Sigma_j, and, from
    d ||pi|| / d pi = pi / ||pi||, d loss / d pi_n = pi_n (sum_j g_j scale_j) / ||pi||^2. The rest is the chain rule
    through softmax(t + s2(t)^1/2 z), where s2 is linear in 1 / alpha = exp(-t).
    """

    @staticmethod
    def forward(
        ctx: Any,
        s: Tensor,
        t: Tensor,
        chi2: Tensor,
        z: Tensor,
        sizes: _Sizes,
        weight: float,
        config: MonteCLoRAConfig,
    ) -> tuple[Tensor, Tensor, Tensor]:
        std = sample_std(s, chi2)
        pi = sample_simplex(t, z)
        length = torch.linalg.vector_norm(pi, dim=-1)
        scale = std * (config.noise_scale * length)[sizes.layer]
        ctx.save_for_backward(s.detach(), t.detach(), z, std, pi, length, scale)
        ctx.sizes, ctx.weight, ctx.config = sizes, weight, config
        ctx.mark_non_differentiable(std, pi)
        return scale, std, pi

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        s, t, z, std, pi, length, scale = ctx.saved_tensors
        sizes, weight, config = ctx.sizes, ctx.weight, ctx.config
        is_floored = (std <= math.sqrt(VARIANCE_FLOOR)).to(std.dtype)
        along = grad_scale * scale
        grad_s = along * (1 - is_floored)

        square = length.square()
        # A product and a sum, because autocast would do a matrix product in half precision.
        pull = ((sizes.members * along).sum(-1) / square).add_(2 * weight * config.coop_weight)
        grad_logits = pull.unsqueeze(-1) * pi * (pi - square.unsqueeze(-1))
        grad_t = grad_logits
        size = config.num_samples
        if size > 1:
            deviation = logistic_normal(t)[1].sqrt()
            grad_variance = grad_logits * z / (2 * deviation)
            grad_inverse = grad_variance * (1 - 2 / size) + grad_variance.sum(-1, keepdim=True) / size**2
            grad_t = torch.addcmul(grad_logits, torch.exp(-t), grad_inverse, value=-1)
        if weight:
            kl_s, kl_t = kl_gradient(Draw(s, t, std, pi), sizes.rank, is_floored, config)
            grad_s, grad_t = grad_s.add_(kl_s, alpha=weight), grad_t.add(kl_t, alpha=weight)
        return grad_s, grad_t, None, None, None, None, None


class _JoinPenalty(torch.autograd.Function):
    """x as it is; when backward reaches it, weight * d penalty is added, whatever the gradient of the loss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, penalty: Tensor, weight: float) -> Tensor:
        ctx.save_for_backward(torch.full_like(penalty, weight))
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (weight,) = ctx.saved_tensors
        return grads[0], weight, None
