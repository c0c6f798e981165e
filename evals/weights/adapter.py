"""The weights of a model with a LoRA of PEFT on it, W + scaling * B A, from the adapter's files and the base's."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from evals.errors import EvalError
from evals.weights.folder import (
    HEADS,
    TYPES,
    Folder,
    listing,
    read_headers,
    read_json,
    read_tensor,
    state_of,
    weight_files,
)
from evals.weights.names import plain_name
from evals.weights.spectrum import LowRank

ADAPTER_CONFIG = "adapter_config.json"
FACTORS = re.compile(r"(?P<layer>.+)\.lora_(?:embedding_)?(?P<factor>[AB])(?:\.weight)?")
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations of PEFT that change the frozen weights, so that the adapter alone does not say what changed."""


class AdapterFolder:
    """`Weights` of a base with an adapter. All of A and B are in memory, the base's are read when asked for."""

    def __init__(self, path: Path, base: Folder | None = None, otherwise: Folder | None = None) -> None:
        """Read the adapter, and compare it with its base.

        Args:
            path: of adapter_config.json and adapter_model.safetensors.
            base: by default the folder that adapter_config.json names.
            otherwise: taken where that folder is not here.

        Raises:
            EvalError: it is no LoRA, its base is not there, or is another model; with everything that does not fit.
        """
        self.label = str(path)
        config = read_json(path / ADAPTER_CONFIG)
        _check_kind(path, config)
        self._base = base or _named_base(config) or otherwise or _no_base(path, config)
        self._files = weight_files(path)
        found = read_headers(self._files)
        self.epsilon = torch.finfo(torch.float32).eps
        self._updates: dict[str, LowRank] = {}
        self._in_full: dict[str, tuple[Path, str]] = {}
        factors: dict[str, dict[str, tuple[Path, str]]] = {}
        problems = []
        for name, (file, shape, dtype) in found.items():
            plain = plain_name(name)
            # The rest is the name in the model, to which PEFT compares patterns.
            if match := FACTORS.fullmatch(name.removeprefix("base_model.model.")):
                factors.setdefault(match["layer"], {})[match["factor"]] = (file, name)
            elif plain in self._base.shapes:
                if shape != tuple(self._base.shapes[plain]):
                    problems.append(f"{plain} is {_sides(shape)}, and {_sides(self._base.shapes[plain])} in the base")
                self._in_full[plain] = (file, name)
                self.epsilon = max(self.epsilon, torch.finfo(TYPES[dtype]).eps)
            elif plain.endswith(".base_layer.weight"):
                continue  # the frozen weight of an adapted embedding, which PEFT keeps beside its factors
            elif len(shape) > 1 and not (plain in HEADS and self._base.num_tied):
                problems.append(f"{plain} is not in the base")
        for layer, pair in factors.items():
            problems += self._add(layer, pair, config)
        if problems:
            raise EvalError(f"{path}: is no LoRA of {self._base.label}: {listing(problems)}; name its base with --base")

    def _add(self, layer: str, pair: Mapping[str, tuple[Path, str]], config: Mapping[str, Any]) -> list[str]:
        """Keep the update of a layer; what is wrong with it."""
        name = f"{plain_name(layer)}.weight"
        if name not in self._base.shapes:
            return [f"{name} is not in the base"]
        if pair.keys() != {"A", "B"}:
            return [f"{layer} has lora_{next(iter(pair))} only"]
        A, B = read_tensor(*pair["A"]), read_tensor(*pair["B"])
        if A.dim() != 2 or B.dim() != 2 or B.shape[1] != A.shape[0]:
            return [f"{layer} has A of {_sides(A.shape)} and B of {_sides(B.shape)}"]
        # In fp64, which does not round the product.
        B = scaling_of(config, layer, rank=len(A)) * B.double()
        if "lora_embedding_A" in pair["A"][1] or config.get("fan_in_fan_out"):
            # PEFT adds the transposed product to weights [in, out], and to embeddings.
            A, B = B.T, A.T
        if (B.shape[0], A.shape[1]) != tuple(self._base.shapes[name]):
            sides = _sides((B.shape[0], A.shape[1]))
            return [f"{name} is {_sides(self._base.shapes[name])} in the base, and its update {sides}"]
        self._updates[name] = LowRank(B=B, A=A)
        return []

    @property
    def base(self) -> str:
        """See `Weights`."""
        return self._base.base

    @property
    def state(self) -> str:
        """See `Weights`."""
        return f"{self._base.state} {state_of(self._files)}"

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `Weights`: those of the base."""
        return self._base.shapes

    @property
    def num_tied(self) -> int:
        """See `Weights`."""
        return self._base.num_tied

    def read(self, name: str) -> Tensor:
        """See `Weights`."""
        if name in self._in_full:
            return read_tensor(*self._in_full[name])
        weight = self._base.read(name)
        return weight + self._updates[name].dense() if name in self._updates else weight

    def update(self, name: str) -> LowRank | None:
        """See `Weights`."""
        if name in self._in_full:
            return None
        return self._updates.get(name) or self._base.update(name)


def scaling_of(config: Mapping[str, Any], layer: str, *, rank: int) -> float:
    """Scaling of an update: alpha / rank, or alpha / sqrt(rank) with rank-stabilised LoRA (arXiv 2312.03732); alpha is the layer's.

    Args:
        config: content of adapter_config.json.
        layer: its name in the model.
        rank: rows of its A.
    """
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        # The first that fits counts.
        if re.match(rf"(.*\.)?({pattern})$", layer):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _check_kind(path: Path, config: Mapping[str, Any]) -> None:
    start = str(config.get("init_lora_weights")).lower()
    reason, patterns = None, config.get("alpha_pattern") or {}
    if config.get("peft_type") != "LORA":
        reason = f"peft_type is {config.get('peft_type')!r}, and only the updates of a LORA are read"
    elif not _is_number(config.get("lora_alpha")):
        reason = f"lora_alpha is {config.get('lora_alpha')!r}, not a number"
    elif not isinstance(patterns, Mapping) or not all(map(_is_number, patterns.values())):
        reason = f"alpha_pattern is {patterns!r}, not an object of numbers"
    elif config.get("use_dora"):
        reason = "use_dora is set, and DoRA scales the weights, too"
    elif start.startswith(CHANGES_BASE):
        reason = f"init_lora_weights is {start!r}, which changed the frozen weights, too"
    for pattern in patterns if reason is None else ():
        try:
            re.compile(pattern)
        except re.error as error:
            reason = f"alpha_pattern holds {pattern!r}, which is no regular expression ({error})"
    if reason:
        raise EvalError(f"{path / ADAPTER_CONFIG}: {reason}; merge the adapter into its base, and name that folder")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and -1e30 < value < 1e30


def _named_base(config: Mapping[str, Any]) -> Folder | None:
    name = config.get("base_model_name_or_path")
    # os.path asks without an error also for what can be no path.
    return Folder(Path(str(name))) if name and os.path.isdir(str(name)) else None


def _no_base(path: Path, config: Mapping[str, Any]) -> NoReturn:
    raise EvalError(
        f"{path}: its base {config.get('base_model_name_or_path')!r} is no folder here; say with --base where it is"
    )


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
