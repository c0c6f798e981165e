"""Which parameters share a learning rate and a weight decay: the parameter groups of an optimizer, by name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from monteclora import Adapter
from training.config import Config, OptimConfig
from training.costs.shape import unmatched
from training.errors import ModelError

_IN_DECODER_LAYER = re.compile(r"(^|\.)layers\.\d+\.")


def parameter_groups(
    parameters: dict[str, nn.Parameter], adapter: Adapter | None, config: Config
) -> list[dict[str, Any]]:
    """The named groups of the parameters that train, by full name; a parameter with two names is in one group once.

    Without an adapter matrices are in `decay` (with Muon, those inside decoder layers in `muon`), norms and biases in
    `no_decay`; an adapter says itself which groups it has. What `optim.no_decay` takes out of a group that decays is in
    `<group>_no_decay`, and what a pattern of `optim.lr_ratio` matches in `<group>[<pattern>]`. Empty groups are left out:
    DeepSpeed drops them, and whoever addresses groups by index would then hit the wrong one.

    Each group has name, role (the name that it has for the adapter), params, weight_decay, lr_ratio, uses_muon, and the peak
    of its learning rate as lr and initial_lr.

    Raises:
        ModelError: a pattern matches no name, or there is no matrix for Muon.
    """
    optim = config.optim
    for setting, patterns in (("no_decay", optim.no_decay), ("lr_ratio", optim.lr_ratio)):
        for pattern in unmatched(patterns, parameters):
            raise ModelError(
                f"optim.{setting}: {pattern!r} matches no parameter that trains; one of those is {next(iter(parameters))}"
            )
    roles = _roles(parameters, adapter, optim)
    groups: dict[str, dict[str, Any]] = {}
    seen = set()
    for name, parameter in parameters.items():
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        role, decays = roles[id(parameter)]
        own_name = role
        if decays and any(fnmatchcase(name, pattern) for pattern in optim.no_decay):
            own_name, decays = "no_decay" if role == "decay" else f"{role}_no_decay", False
        match = next((pattern for pattern in optim.lr_ratio if fnmatchcase(name, pattern)), None)
        ratio = 1.0 if match is None else optim.lr_ratio[match]
        # What a post-hoc phase leaves as it is has the ratio 0: no learning rate to compare others with.
        peak = optim.lr * ratio * (1.0 if adapter is None else adapter.lr_ratio(role) or 1.0)
        group = groups.setdefault(
            own_name if match is None else f"{own_name}[{match}]",
            {
                "role": role,
                "params": [],
                "weight_decay": optim.weight_decay if decays else 0.0,
                "lr_ratio": ratio,
                "lr": peak,
                "initial_lr": peak,
                "uses_muon": role == "muon",
            },
        )
        group["params"].append(parameter)
    if optim.kind == "muon" and not any(group["uses_muon"] for group in groups.values()):
        raise ModelError(
            "optim.kind muon is for the matrices inside decoder layers (*.layers.<k>.*), and the model has none"
        )
    return [{"name": name, **group} for name, group in groups.items()]


def set_learning_rates(groups: Iterable[dict[str, Any]], lr: float, step: int, adapter: Adapter | None) -> None:
    """Begin optimizer step `step` (from 0), whose learning rate is `lr`: tell the adapter, and set that of every group.

    A group's is lr, times its lr_ratio, times what the adapter says of it in this step.
    """
    if adapter is not None:
        adapter.begin_step(step)
    for group in groups:
        group["lr"] = lr * group["lr_ratio"] * (1.0 if adapter is None else adapter.lr_ratio(group["role"]))


def is_muon_matrix(name: str, num_dims: int) -> bool:
    """Whether Muon makes the updates of this parameter: a matrix inside a decoder layer."""
    return num_dims == 2 and _IN_DECODER_LAYER.search(name) is not None


def _roles(
    parameters: dict[str, nn.Parameter], adapter: Adapter | None, optim: OptimConfig
) -> dict[int, tuple[str, bool]]:
    """By a parameter's id: its group before any pattern, and whether that decays."""
    if adapter is not None:
        groups = adapter.parameter_groups(optim.lr, weight_decay=1.0)
        return {id(p): (group["name"], group["weight_decay"] > 0) for group in groups for p in group["params"]}
    roles: dict[int, tuple[str, bool]] = {}
    for name, parameter in parameters.items():
        # ZeRO-3 keeps the shape of a sharded parameter under another name.
        num_dims = len(getattr(parameter, "ds_shape", parameter.shape))
        if optim.kind == "muon" and is_muon_matrix(name, num_dims):
            role = "muon"
        else:
            role = "decay" if num_dims >= 2 else "no_decay"
        roles.setdefault(id(parameter), (role, role != "no_decay"))
    return roles
