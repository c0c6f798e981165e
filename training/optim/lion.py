"""Lion with decoupled weight decay, the optimizer of the LoRA-against-full-finetuning study (arXiv 2405.09673).

The rule is Chen et al.'s (arXiv 2302.06675) with a decay that does not grow with the learning rate (as in LLM Foundry's
DecoupledLionW): relative to the group's first learning rate lr0 ("initial_lr"),

    p <- p - (lr / lr0) * weight_decay * p - lr * sign(beta1 * m + (1 - beta1) * g)
    m <- beta2 * m + (1 - beta2) * g

which is Lion with the usual decay weight_decay / lr0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from training.optim.states import flag_of, materialised

_CHUNK = {"cpu": 1 << 17, "cuda": 1 << 26}
"""Elements updated at a time: few enough for a processor's cache, and on a GPU for little memory beside the state."""


class LionW(torch.optim.Optimizer):
    """Decoupled Lion; sign(0) is 0, so what has no gradient and no momentum only decays.

    The state of a tensor is `exp_avg`, of its shape and type, and `step`, the number of updates. As with torch's fused
    optimizers, a step changes nothing when the attribute `found_inf` (a float32 scalar) is set and 1; the host never
    waits for its value.
    """

    STATES = ("exp_avg",)
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Any,
        *,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        """Take tensors or groups of them; a group without "initial_lr" has its lr as that."""
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        for group in self.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def states_of(self, tensor: Tensor) -> tuple[str, ...]:
        """Names of the tensor's element-wise states."""
        return self.STATES

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every tensor that has a gradient."""
        for group in self.param_groups:
            decay = group["weight_decay"] / group["initial_lr"]
            for tensor in group["params"]:
                if tensor.grad is not None:
                    self._update(tensor, group["lr"], decay, *group["betas"])

    def _update(self, tensor: Tensor, lr: float, decay: float, beta1: float, beta2: float) -> None:
        state, found_inf = materialised(self, tensor), flag_of(self, tensor)
        state["step"] += 1 if found_inf is None else ~found_inf
        size = _CHUNK.get(tensor.device.type, tensor.numel())
        flats = (tensor.view(-1), tensor.grad.reshape(-1), state["exp_avg"].view(-1))  # type: ignore[union-attr]
        for weight, gradient, mean in zip(*(flat.split(size) for flat in flats), strict=True):
            if found_inf is not None:
                gradient = torch.where(found_inf, mean, gradient)  # which leaves the mean as it is
            change = mean.lerp(gradient, 1 - beta1).sign_().add_(weight, alpha=decay)
            if found_inf is not None:
                change.mul_(~found_inf)
            mean.lerp_(gradient, 1 - beta2)
            weight.sub_(change, alpha=lr)
