"""What an adapter is made of: plain settings and plain arithmetic on them, without torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from monteclora.settings import type_problems


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adaptation: y = W x + (alpha / rank) B A x, with W frozen (Hu et al., arXiv 2106.09685)."""

    rank: int = 16
    """Rank r of the update B A of an adapted linear layer; below the smaller side of every layer."""

    alpha: float | None = None
    """Numerator of the update's scale alpha / rank. Not set: 2 x rank, with each layer's own rank."""

    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Ranks of layers that differ from `rank`, by pattern (as in targets); the first pattern that matches a layer counts."""

    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """Alphas of layers that differ from `alpha`, by pattern (as in targets); the first pattern that matches a layer counts."""

    rslora: bool = False
    """Scale the update by alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732), which keeps its size independent of the rank."""

    dropout: float = 0.0
    """Probability of zeroing an input feature of the update while training; the frozen path is not touched."""

    loraplus_ratio: float = 1.0
    """Learning rate of B over that of A (LoRA+, arXiv 2402.12354, which uses 16); 1 = the same for both."""

    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Shell-style patterns of the linear layers to adapt. A pattern with a dot is compared with the full dotted name
    (`model.layers.1?.mlp.*`), one without with the last component of the name."""

    modules_to_save: tuple[str, ...] = ()
    """Patterns (as in targets) of modules that train in full beside the adapter and are saved with it: the fresh head
    of a classifier, say. Linear layers inside them get no low-rank update."""

    def __post_init__(self) -> None:
        """Take lists of patterns as tuples."""
        for name in ("targets", "modules_to_save"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))

    def rank_of(self, name: str) -> int:
        """Rank of the layer with this full dotted name."""
        return _first_match(name, self.rank_pattern, self.rank)

    def alpha_of(self, name: str) -> float:
        """Alpha of the layer with this full dotted name."""
        alpha = _first_match(name, self.alpha_pattern, self.alpha)
        return 2.0 * self.rank_of(name) if alpha is None else float(alpha)

    def scaling_of(self, name: str) -> float:
        """The factor in front of B A of the layer with this full dotted name."""
        rank = self.rank_of(name)
        return self.alpha_of(name) / (math.sqrt(rank) if self.rslora else rank)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field name, what is wrong and what to do) for every value of a wrong type, else for every one out of range."""
        if wrong := list(type_problems(self)):
            yield from wrong
            return
        for name, rank in (("rank", self.rank), *_entries("rank_pattern", self.rank_pattern)):
            if rank < 1:
                yield name, f"is {rank}; a low-rank update needs a rank of 1 or more"
        alphas = () if self.alpha is None else (("alpha", self.alpha),)
        for name, alpha in (*alphas, *_entries("alpha_pattern", self.alpha_pattern)):
            if not (math.isfinite(alpha) and alpha > 0):
                yield name, f"is {alpha}; give a positive number, 2 x rank is a good start"
        if self.rslora and self.alpha is None:
            yield (
                "rslora",
                "needs alpha: the default, 2 x rank, is meant for the scale alpha / rank; 16 is a good start",
            )
        if not 0 <= self.dropout < 1:
            yield "dropout", f"is {self.dropout}; give a probability in [0, 1)"
        if not (math.isfinite(self.loraplus_ratio) and self.loraplus_ratio > 0):
            yield "loraplus_ratio", f"is {self.loraplus_ratio}; give a positive number, 1 = the same learning rate"
        if not self.targets:
            yield "targets", "is empty; name at least one linear layer, for example q_proj"
        for name in ("targets", "modules_to_save", "rank_pattern", "alpha_pattern"):
            if any(not pattern for pattern in getattr(self, name)):
                yield name, "holds an empty pattern, which matches nothing; remove it"


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

    start_step: int = 0
    """Optimizer steps of plain LoRA before the cooperative phase, in which there are noise and penalty."""

    posthoc: bool = False
    """In the cooperative phase train the variational parameters only; all others stay what LoRA's training made them."""

    coop_lr_ratio: float = 1.0
    """Factor on the learning rate in the cooperative phase (the authors' scripts use 5, and begin a schedule of its own
    there; here the schedule goes on)."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field name, what is wrong and what to do) for every value of a wrong type, else for every one out of range."""
        yield from super().problems()
        if any(type_problems(self)):
            return
        if self.num_samples < 1:
            yield "num_samples", f"is {self.num_samples}; a mixture needs 1 or more Gaussians, the paper uses 4"
        for name in ("noise_scale", "kl_weight", "coop_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                yield name, f"is {value}; give 0 (off) or a positive number"
        if not (math.isfinite(self.dirichlet_prior) and self.dirichlet_prior > 0):
            yield "dirichlet_prior", f"is {self.dirichlet_prior}; a concentration is positive, 1 is uniform"
        if self.estimator not in ("collapsed", "sampled"):
            yield "estimator", f"is {self.estimator!r}; choose `collapsed` or `sampled`"
        if self.start_step < 0:
            yield "start_step", f"is {self.start_step}; give 0 (noise from the start) or a number of steps"
        if not (math.isfinite(self.coop_lr_ratio) and self.coop_lr_ratio > 0):
            yield "coop_lr_ratio", f"is {self.coop_lr_ratio}; give a positive number, 1 = an unchanged learning rate"


def is_target(name: str, targets: Iterable[str]) -> bool:
    """Tell whether the module with this full dotted name matches any of the patterns of `LoRAConfig.targets`."""
    return any(matches(name, pattern) for pattern in targets)


def matches(name: str, pattern: str) -> bool:
    """Compare one pattern with a dotted name: in full when the pattern has a dot, else with the last component."""
    return fnmatchcase(name if "." in pattern else name.rpartition(".")[2], pattern)


def is_inside(name: str, patterns: Iterable[str]) -> bool:
    """Tell whether a dotted name, or that of a module it lies in, matches any of the patterns."""
    parts = name.split(".")
    outer = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(is_target(module, patterns) for module in outer)


def adapted(layers: Iterable[str], config: LoRAConfig) -> list[str]:
    """Names of those linear layers that get an adapter."""
    return [name for name in layers if is_target(name, config.targets) and not is_inside(name, config.modules_to_save)]


def model_problems(
    config: LoRAConfig, layers: Mapping[str, tuple[int, int]], modules: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yield (field name, what is wrong and what to do) for what the settings ask of a model that is not so.

    That is patterns that match nothing, since what they were meant for would silently stay as it is, and ranks that are
    not below the smaller side of a layer.

    Args:
        config: settings that are in range.
        layers: (in_features, out_features) of the model's linear layers by full dotted name.
        modules: full dotted names of all modules of the model.
    """
    names = adapted(layers, config)
    called = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
    there = f"the model's linear layers are called {called}" if layers else "the model has no linear layer"
    for pattern in config.targets:
        if not any(matches(name, pattern) for name in layers):
            hint = ""
            if "." in pattern and layers:
                hint = f"; a pattern with a dot is compared with the full name, of which one is {next(iter(layers))}"
            yield "targets", f"{pattern!r} matches no linear layer; {there}{hint}"
    if layers and not names and any(is_target(name, config.targets) for name in layers):
        yield "targets", "match only layers inside modules_to_save, which train in full; take them out of one"
    for setting in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, setting):
            if names and not any(matches(name, pattern) for name in names):
                yield setting, f"{pattern!r} matches no layer that targets adapt; one of those is {names[0]}"
    for pattern in config.modules_to_save:
        if not any(matches(name, pattern) for name in modules):
            outer = ", ".join(dict.fromkeys(name.partition(".")[0] for name in modules))
            yield "modules_to_save", f"{pattern!r} matches no module; the model consists of {outer}"
    reported = set()
    for name in names:
        fan_in, fan_out = layers[name]
        rank = config.rank_of(name)
        setting = next((f"rank_pattern.{p}" for p in config.rank_pattern if matches(name, p)), "rank")
        if rank >= min(fan_in, fan_out) and setting not in reported:
            reported.add(setting)
            yield (
                setting,
                f"is {rank}, no low rank for {name}, which is {fan_in} x {fan_out}; give less than "
                f"{min(fan_in, fan_out)}, for this layer alone with rank_pattern, or leave it out of targets",
            )


def count_adapter_parameters(layers: Mapping[str, tuple[int, int]], config: LoRAConfig) -> int:
    """Count the trainable parameters of an adapter on linears of these names and (in_features, out_features).

    Each layer has A [r, in] and B [out, r]; MonteCLoRA adds r log standard deviations and N log concentrations.
    """
    num_samples = config.num_samples if isinstance(config, MonteCLoRAConfig) else 0
    total = 0
    for name, (fan_in, fan_out) in layers.items():
        rank = config.rank_of(name)
        total += rank * (fan_in + fan_out) + (rank + num_samples if num_samples else 0)
    return total


def _first_match(name: str, patterns: Mapping[str, Any], default: Any) -> Any:
    return next((value for pattern, value in patterns.items() if matches(name, pattern)), default)


def _entries(field_name: str, patterns: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(f"{field_name}.{pattern}", value) for pattern, value in patterns.items()]
