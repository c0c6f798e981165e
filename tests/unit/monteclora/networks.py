"""Small networks with the shapes of real ones, and what the tests of the adapter do to all of them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from monteclora.adapter import Adapter, attach_adapter
from monteclora.config import LoRAConfig

TARGETS = ("q_proj", "o_proj", "down_proj")
WIDTH = 6


class Block(nn.Module):
    """Three linear layers of different shapes, with and without a bias."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.q_proj, self.o_proj = nn.Linear(width, width), nn.Linear(width, width + 2, bias=False)
        self.down_proj = nn.Linear(width + 2, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down_proj(torch.tanh(self.o_proj(torch.tanh(self.q_proj(x)))))


class Stack(nn.Module):
    """Blocks in a module list, as transformers have them, each of them recomputed in backward if asked for."""

    layers: Any

    def __init__(self, num_blocks: int = 2, checkpointing: Literal["reentrant", "other"] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Block() for _ in range(num_blocks))
        self.checkpointing = checkpointing

    def forward(self, x: Tensor) -> Tensor:
        for block in self.layers:
            if self.checkpointing is None:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.checkpointing == "reentrant")
        return x


def adapt(model: nn.Module, config: LoRAConfig, *, penalty_weight: float = 1.0) -> Adapter:
    """Attach an adapter that is no longer at its start, where B is 0 and most gradients are."""
    adapter = attach_adapter(model, config)
    model.train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in adapter.layers.values():
            module.lora_B.normal_(0, 0.3, generator=generator)
    adapter.set_penalty_weight(penalty_weight)
    return adapter


def gradients(model: nn.Module, adapter: Adapter, x: Tensor, *, seed: int = 3) -> dict[str, Tensor | None]:
    """Gradients of a loss with respect to the adapter and, if it needs one, to x, from a given state of the noise."""
    parameters = adapter.named_parameters()
    for parameter in parameters.values():
        parameter.grad = None
    x = x.detach().requires_grad_(x.requires_grad)
    torch.manual_seed(seed)
    model(x).square().mean().backward()
    return {name: p.grad for name, p in parameters.items()} | {"x": x.grad}


def assert_same_bits(found: dict[str, Tensor | None], wanted: dict[str, Tensor | None]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        other = found[name]
        assert (value is None) == (other is None), name
        assert value is None or torch.equal(value, other), name  # type: ignore[arg-type]


class CountOperations(TorchDispatchMode):
    """Counts the operations that do something, by name; views do not."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func is not torch.ops.aten._unsafe_view.default:
            self.counts[str(func)] = self.counts.get(str(func), 0) + 1
        return func(*args, **(kwargs or {}))


def two_sample_distance(one: Tensor, two: Tensor) -> float:
    """Kolmogorov-Smirnov statistic of two samples: the largest distance between their distribution functions.

    sqrt(n m / (n + m)) times it exceeds 2.23 with probability 1e-4 if the samples are from the same law.
    """
    one, two = one.sort().values, two.sort().values
    points = torch.cat((one, two))
    below = [torch.searchsorted(sample, points, right=True) / len(sample) for sample in (one, two)]
    return (below[0] - below[1]).abs().max().item()
