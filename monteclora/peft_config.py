"""PEFT's description of a LoRA, `adapter_config.json`, and our settings: one made from the other, without torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

from monteclora.config import LoRAConfig, is_inside, is_target

Number = TypeVar("Number", int, float)

_PLAIN: dict[str, tuple[object, ...]] = {
    "use_dora": (False,),
    "use_qalora": (False,),
    "use_bdlora": (),
    "lora_bias": (False,),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
    "target_parameters": ([],),
    "trainable_token_indices": ([], {}),
    "layer_replication": ([],),
    "alora_invocation_tokens": ([],),
    "arrow_config": (),
    "kasa_config": (),
    "monteclora_config": (),
}
"""Settings of PEFT that change what a LoRA computes, and the values, beside None, at which they do not. The other
initialisations (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the frozen weights."""

_CLASSIFIER_HEADS = ("classifier", "score")
"""Modules that PEFT's SEQ_CLS adapters hold in full."""


def to_peft(
    config: LoRAConfig,
    layers: Collection[str],
    saved_parameters: Collection[str] = (),
    *,
    base_model_name: str = "",
    model_class: str = "",
    model_library: str = "",
) -> dict[str, Any]:
    """What PEFT needs to know to rebuild the adapter: ranks and alphas of the layers as they are, targets, task.

    Args:
        config: settings of the adapter.
        layers: the adapted layers by their name in the model.
        saved_parameters: the parameters of modules that train in full, by their name in the model.
        base_model_name: name or path of the frozen model.
        model_class: name of the model's class, which says what task the adapter is for.
        model_library: name of the package the class comes from.
    """
    alpha = 2.0 * config.rank if config.alpha is None else config.alpha
    # PEFT reads a plain name as the last component of a layer's name, as we do; it knows no wildcards.
    plain = not any(c in pattern for pattern in config.targets for c in "*?[.")
    saved = list(dict.fromkeys(_saved_module(name, config.modules_to_save) for name in saved_parameters))
    task = _task(model_class, saved)
    class_of_other_task = {"base_model_class": model_class, "parent_library": model_library}
    return {
        "peft_type": "LORA",
        "task_type": task,
        "auto_mapping": class_of_other_task if model_class and task is None else None,
        "base_model_name_or_path": base_model_name,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": _shortest(alpha),
        "rank_pattern": _by_pattern({name: config.rank_of(name) for name in layers}, config.rank, _exactly),
        "alpha_pattern": {
            pattern: _shortest(value)
            for pattern, value in _by_pattern({n: config.alpha_of(n) for n in layers}, alpha, _exactly).items()
        },
        "use_rslora": config.rslora,
        "lora_dropout": config.dropout,
        "target_modules": list(config.targets if plain else layers),
        "modules_to_save": saved or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": False,
    }


def from_peft(
    peft: Mapping[str, Any], layers: Collection[str], linears: Collection[str], modules: Collection[str]
) -> LoRAConfig:
    """The settings of a LoRA that PEFT describes.

    Args:
        peft: content of `adapter_config.json`.
        layers: names of the layers it adapts.
        linears: names of all linear layers of the model.
        modules: names of all modules of the model.

    Raises:
        ValueError: a setting is missing or of no use; the message names it.
    """
    rank, alpha = _number(peft, "r", int), _number(peft, "lora_alpha", float)
    ranks = {name: _lookup(peft, "rank_pattern", name, rank, int) for name in layers}
    if (lowest := min([rank, *ranks.values()])) < 1:
        raise ValueError(f"r or rank_pattern has a rank of {lowest}, below 1")
    alphas = {name: _lookup(peft, "alpha_pattern", name, alpha, float) for name in layers}
    # PEFT compares the ends of names, without regard to dots.
    listed = _strings(peft, "modules_to_save")
    saved = [name for name in modules if name.endswith(tuple(listed))]
    saved = [name for name in saved if not is_inside(name.rpartition(".")[0], saved)]
    targets = _strings(peft, "target_modules")
    # PEFT accepts other patterns than we do, a regular expression for one; the layers themselves always say it.
    if {name for name in linears if is_target(name, targets) and not is_inside(name, saved)} != set(layers):
        targets = tuple(layers)
    return LoRAConfig(
        rank=rank,
        alpha=alpha,
        rank_pattern=_by_pattern(ranks, rank, str),
        alpha_pattern=_by_pattern(alphas, alpha, str),
        rslora=bool(peft.get("use_rslora")),
        dropout=_number({"lora_dropout": 0.0} | dict(peft), "lora_dropout", float),
        targets=targets,
        modules_to_save=tuple(saved),
    )


def more_than_lora(peft: Mapping[str, Any]) -> Iterator[str]:
    """Name the settings, with their values, by which an adapter of PEFT is more than a LoRA on linear layers."""
    for setting, plain in _PLAIN.items():
        value = peft.get(setting)
        # By type too: 0 and False are equal, and so are 1 and True.
        if value is not None and not any(type(value) is type(one) and value == one for one in plain):
            yield f"{setting} = {value!r}"


def _task(model_class: str, saved: Collection[str]) -> str | None:
    if model_class.endswith(("ForCausalLM", "LMHeadModel")):
        return "CAUSAL_LM"
    # PEFT asks the files of a SEQ_CLS adapter for the head.
    has_head = any(name.rpartition(".")[2] in _CLASSIFIER_HEADS for name in saved)
    return "SEQ_CLS" if model_class.endswith("ForSequenceClassification") and has_head else None


def _saved_module(parameter: str, patterns: Collection[str]) -> str:
    """The outermost module that a pattern names and the parameter lies in; its own where none does."""
    parts = parameter.split(".")[:-1]
    outer = [".".join(parts[: end + 1]) for end in range(len(parts))]
    return next((name for name in outer if is_target(name, patterns)), outer[-1])


def _by_pattern(values: Mapping[str, Number], default: Number, exactly: Callable[[str], str]) -> dict[str, Number]:
    """Fewest patterns that give every layer its value: last components where their layers agree, else full names."""
    by_last: dict[str, dict[str, Number]] = {}
    for name, value in values.items():
        by_last.setdefault(name.rpartition(".")[2], {})[name] = value
    patterns: dict[str, Number] = {}
    for last, group in by_last.items():
        distinct = set(group.values())
        if len(distinct) > 1:
            # A name without a dot would match the others too, and the first match counts.
            patterns |= {exactly(name): group[name] for name in sorted(group, key=lambda name: "." not in name)}
        elif distinct != {default}:
            patterns[last] = distinct.pop()
    return patterns


def _exactly(name: str) -> str:
    """A pattern of PEFT, a regular expression for the end of a name, that matches this layer alone."""
    return "^" + re.escape(name)


def _lookup(peft: Mapping[str, Any], setting: str, name: str, default: Number, kind: Callable[[Any], Number]) -> Number:
    patterns = peft.get(setting) or {}
    if not isinstance(patterns, Mapping):
        raise ValueError(f"{setting} is {patterns!r}, not an object")
    for pattern in patterns:
        try:
            is_match = re.match(rf"(.*\.)?({pattern})$", name)
        except re.error as error:
            raise ValueError(f"{setting} holds {pattern!r}, which is no regular expression ({error})") from error
        if is_match:
            return _number(patterns, pattern, kind, f"{setting} ")
    return default


def _number(values: Mapping[str, Any], name: str, kind: Callable[[Any], Number], where: str = "") -> Number:
    value = values.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and -1e30 < value < 1e30
    if not is_number or kind(value) != value:
        raise ValueError(f"{where}{name} is {value!r}, not a number for it")
    return kind(value)


def _strings(peft: Mapping[str, Any], setting: str) -> tuple[str, ...]:
    value = peft.get(setting)
    return tuple(str(item) for item in value) if isinstance(value, list) else ()


def _shortest(number: float) -> float:
    """A whole number without its point: PEFT's alpha is an integer."""
    return int(number) if number == int(number) else number
