"""What an adapter is made of: plain settings and plain arithmetic on them, without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adaptation: y = W x + (alpha / rank) B A x, with W frozen (Hu et al., arXiv 2106.09685)."""

    rank: int = 16
    """Rank r of the update B A of every adapted linear layer."""

    alpha: float = 32.0
    """Numerator of the update's scale alpha / rank; 2 x rank is a good start."""

    dropout: float = 0.0
    """Probability of zeroing an input feature of the update while training; the frozen path is not touched."""

    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Shell-style patterns of the linear layers to adapt. A pattern with a dot is compared with the full dotted name
    (`model.layers.1?.mlp.*`), one without with the last component of the name."""

    @property
    def scaling(self) -> float:
        """The factor alpha / rank in front of B A."""
        return self.alpha / self.rank

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field name, what is wrong and what to do) for every value out of range."""
        if self.rank < 1:
            yield "rank", f"is {self.rank}; a low-rank update needs a rank of 1 or more"
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            yield "alpha", f"is {self.alpha}; give a positive number, 2 x rank is a good start"
        if not 0 <= self.dropout < 1:
            yield "dropout", f"is {self.dropout}; give a probability in [0, 1)"
        if not self.targets:
            yield "targets", "is empty; name at least one linear layer, for example q_proj"
        if any(not pattern for pattern in self.targets):
            yield "targets", "holds an empty pattern, which matches nothing; remove it"


@dataclass(frozen=True, kw_only=True)
class MonteCLoRAConfig(LoRAConfig):
    """LoRA whose A is a mixture of Gaussians under Wishart and Dirichlet priors (MonteCLoRA, arXiv 2411.04358)."""

    num_samples: int = 4
    """Number N of Gaussians in the mixture. The cost does not depend on it unless estimator is `sampled`."""

    noise_scale: float = 2.5e-5
    """Factor eps on the noise added to A while training, applied once; 0 switches the noise off."""

    kl_weight: float = 1e-5
    """Weight eta of the KL divergences to the priors, in units of the task loss (nats per target token)."""

    coop_weight: float = 1.0
    """Weight of the collision probability of the mixture weights, which keeps the mixture from collapsing; it is not
    multiplied by kl_weight."""

    dirichlet_prior: float = 1.0
    """Concentration of the symmetric Dirichlet prior over the mixture weights; 1 is uniform over the simplex."""

    estimator: Literal["collapsed", "sampled"] = "collapsed"
    """`collapsed` draws the weighted sum of the N Gaussians at once: the same law, gradients of lower variance.
    `sampled` draws all N of them, as the paper does, for comparison."""

    analytic_kl: bool = False
    """Use the expectation of the normal KL over the Wishart draw in place of its value at the draw."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field name, what is wrong and what to do) for every value out of range."""
        yield from super().problems()
        if self.num_samples < 1:
            yield "num_samples", f"is {self.num_samples}; a mixture needs 1 or more Gaussians, the paper uses 4"
        for field in ("noise_scale", "kl_weight", "coop_weight"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= 0):
                yield field, f"is {value}; give 0 (off) or a positive number"
        if not (math.isfinite(self.dirichlet_prior) and self.dirichlet_prior > 0):
            yield "dirichlet_prior", f"is {self.dirichlet_prior}; a concentration is positive, 1 is uniform"
        if self.estimator not in ("collapsed", "sampled"):
            yield "estimator", f"is {self.estimator!r}; choose `collapsed` or `sampled`"


def is_target(name: str, targets: Iterable[str]) -> bool:
    """Tell whether the linear layer with this full dotted name matches any of the patterns of `LoRAConfig.targets`."""
    return any(matches(name, pattern) for pattern in targets)


def matches(name: str, pattern: str) -> bool:
    """Compare one pattern with a dotted name: in full when the pattern has a dot, else with the last component."""
    return fnmatchcase(name if "." in pattern else name.rpartition(".")[2], pattern)


def count_adapter_parameters(shapes: Iterable[tuple[int, int]], config: LoRAConfig) -> int:
    """Count the trainable parameters of an adapter on linears of these (in_features, out_features).

    Each layer has A [r, in] and B [out, r]; MonteCLoRA adds r log standard deviations and N log concentrations.
    """
    variational = config.rank + config.num_samples if isinstance(config, MonteCLoRAConfig) else 0
    return sum(config.rank * (fan_in + fan_out) + variational for fan_in, fan_out in shapes)
