"""All targets, by the module that has them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from tests.fuzz.target import Target

MODULES = (
    "configurations",
    "documents",
    "kept_tokens",
    "checkpoints",
    "tokenizers_and_records",
    "run_folders",
    "held_out",
    "weights",
    "demo_corpus",
)


def targets(modules: Sequence[str] = MODULES) -> list[Target]:
    """The targets of some modules, which are imported."""
    return [each for name in modules for each in importlib.import_module(f"{__name__}.{name}").TARGETS]


def module_of(target: Target) -> str:
    """The module that has a target."""
    return target.read.__module__.rpartition(".")[2]
