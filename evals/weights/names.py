"""Names of weights: the same for a model, its adapters and what wraps it, and where in the model a weight is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

WRAPPERS = ("_orig_mod.", "module.", "base_model.", "model.")
"""What compilation, data parallelism, PEFT and the classes with a head put before the name of a weight."""
FIRST_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""In the order in which data pass them; others follow by name."""


def plain_name(name: str) -> str:
    """The name without wrappers: base_model.model.model.layers.0.mlp.up_proj.weight -> layers.0.mlp.up_proj.weight."""
    while wrapper := next((each for each in WRAPPERS if name.startswith(each)), None):
        name = name.removeprefix(wrapper)
    return name


def layer_of(name: str) -> int | None:
    """Number of the layer: the first number in the name; None of what is in no layer, such as embeddings."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def module_names(names: Iterable[str]) -> dict[str, str]:
    """What each weight's module is called in every layer: q_proj, and attn.c_proj where the last part alone is not enough.

    Args:
        names: plain names of weights.

    Returns:
        Module by name; no two weights of one layer have the same.
    """
    shortenings: tuple[Callable[[str], str], ...] = (_last, _inside_layer, _without_layer)
    for shorten in shortenings:
        found = {name: shorten(name.removesuffix(".weight")) for name in names}
        if max(Counter((layer_of(name), module) for name, module in found.items()).values(), default=0) <= 1:
            return found
    return {name: name for name in names}


def in_order(modules: Iterable[str]) -> list[str]:
    """Each module once, those of FIRST_MODULES first."""
    known = {module: number for number, module in enumerate(FIRST_MODULES)}
    return sorted(set(modules), key=lambda module: (known.get(_last(module), len(known)), module))


def is_wanted(name: str, module: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern (*, ? and [...]) fits the module's or the weight's name; no patterns fit all."""
    patterns = list(patterns)
    return not patterns or any(fnmatchcase(text, pattern) for text in (module, name) for pattern in patterns)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _inside_layer(name: str) -> str:
    parts = name.split(".")
    start = next((place + 1 for place, part in enumerate(parts) if part.isdecimal()), 0)
    return ".".join(parts[start:])


def _without_layer(name: str) -> str:
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdecimal()), len(parts))
    return ".".join(parts[:number] + parts[number + 1 :])
