"""The DeepSpeed JSON: engine mechanics only, checked before DeepSpeed sees it.

The recipe owns batch sizes, precision, clipping, optimizer and learning rate; a JSON that sets one of them too is
refused, naming the line to delete. DeepSpeed itself ignores unknown keys and the value "auto" without a word.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

OWNED = {
    "train_batch_size": "train.global_batch_rows",
    "train_micro_batch_size_per_gpu": "train.micro_batch_rows",
    "gradient_accumulation_steps": "train.global_batch_rows and train.micro_batch_rows",
    "gradient_clipping": "train.gradient_clipping",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "data_types": "train.precision",
    "torch_autocast": "train.precision",
    "communication_data_type": "train.precision",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
    "zero_optimization.offload_optimizer": "train.placement = zero3_offload",
    "zero_optimization.zero_hpz_partition_size": "train.placement = zero3_hpz",
    "sequence_parallel_size": "train.sequence_parallel",
}
"""DeepSpeed keys that the recipe owns, and the settings to use instead."""

REMOVED = {
    "nebula": "checkpoints need no Nebula here",
    "elasticity": "checkpoints resume at any world size that divides train.global_batch_rows",
    "compression_training": "it has no replacement",
    "amp": "use train.precision",
    "quantize_training": "it has no replacement",
    "sparse_gradients": "it has no replacement",
    "eigenvalue": "it has no replacement",
    "sparse_attention": "it has no replacement",
    "graph_harvesting": "it has no replacement",
    "curriculum_learning": "it has no replacement",
    "progressive_layer_drop": "it has no replacement",
    "zero_optimization.mics_shard_size": "it has no replacement",
    "zero_optimization.mics_hierarchical_params_gather": "it has no replacement",
    "zero_optimization.zeropp_loco_param": "it has no replacement",
}
"""Keys that DeepSpeed 0.19 removed and stops at, and what to do about each."""

UNSUPPORTED = {
    "prescale_gradients": "scaling of gradients before their reduction (ZeRO-3 has none)",
    "gradient_predivide_factor": "scaling of gradients before their reduction (ZeRO-3 has none)",
    "zero_optimization.offload_param": "offloading of weights",
    "zero_optimization.zero_quantized_weights": "qwZ",
    "zero_optimization.zero_quantized_gradients": "qgZ",
    "zero_optimization.zero_quantized_nontrainable_weights": "quantized frozen weights",
}
"""Features of DeepSpeed that checkpoints here don't cover yet."""

KNOWN = {
    "zero_optimization", "comms_logger", "flops_profiler", "wall_clock_breakdown", "memory_breakdown",
    "steps_per_print", "dump_state",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "aio", "compile", "seq_parallel_communication_data_type",
    "checkpoint", "timers", "disable_allgather",
}  # fmt: skip
"""Top-level keys that are engine mechanics."""


ZERO = {
    **dict.fromkeys(
        ("stage", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold",
         "stage3_model_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance",
         "stage3_module_granularity_threshold"), "a whole number, not negative"),
    **dict.fromkeys(
        ("reduce_bucket_size", "allgather_bucket_size", "sub_group_size"), "a whole number, at least 1"),
    **dict.fromkeys(
        ("contiguous_gradients", "reduce_scatter", "overlap_comm", "allgather_partitions", "round_robin_gradients",
         "stage3_gather_16bit_weights_on_model_save", "stage3_use_all_reduce_for_fetch_params",
         "stage3_allgather_sequential", "memory_efficient_linear", "log_trace_cache_warnings",
         "use_multi_rank_bucket_allreduce", "ignore_unused_parameters", "enable_sanity_checks"), "true or false"),
    "leaf_module": "an object",
}  # fmt: skip
"""Keys of zero_optimization that can be used here, and their types."""

TOP = {
    **dict.fromkeys(("comms_logger", "flops_profiler", "aio", "compile", "checkpoint", "timers"), "an object"),
    **dict.fromkeys(("wall_clock_breakdown", "memory_breakdown", "dump_state", "zero_allow_untested_optimizer",
                     "zero_force_ds_cpu_optimizer", "disable_allgather"), "true or false"),
    "steps_per_print": "a whole number, at least 1",
}  # fmt: skip
"""Types of top-level keys."""

TYPES: dict[str, Callable[[Any], bool]] = {
    "true or false": lambda value: isinstance(value, bool),
    "an object": lambda value: isinstance(value, dict),
    "a whole number, not negative": lambda value: is_whole(value) and value >= 0,
    "a whole number, at least 1": lambda value: is_whole(value) and value >= 1,
}
"""How each type is told."""


def is_whole(value: Any) -> bool:
    """Whether a JSON value is a whole number; 1e9 is one."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value == int(value)
    )


class BadJson(ValueError):
    """JSON that Python would read but that can't be meant."""


def refuse_constant(name: str) -> None:
    """NaN and Infinity are no JSON."""
    raise BadJson(f"not valid JSON: {name} is no number")


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different; of equal ones all but the last would be ignored."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise BadJson(f"the key {next(n for n in names if names.count(n) > 1)!r} is written twice in one object")
    return found


def read_ds_config(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Read a DeepSpeed JSON; return it with every problem found in it (the dictionary is {} when unreadable)."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, parse_constant=refuse_constant, object_pairs_hook=without_duplicates)
        if not isinstance(content, dict):
            return {}, [f"--ds_config {path}: must be a JSON object"]
        return content, [f"--ds_config {path}: {problem}" for problem in problems(content, text)]
    except FileNotFoundError:
        return {}, [f"--ds_config {path}: no such file"]
    except (OSError, UnicodeDecodeError) as error:
        return {}, [f"--ds_config {path}: can't be read: {error}"]
    except json.JSONDecodeError as error:
        return {}, [f"--ds_config {path}: not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"]
    except BadJson as error:
        return {}, [f"--ds_config {path}: {error}"]
    except RecursionError:
        return {}, [f"--ds_config {path}: is nested too deep for a DeepSpeed JSON"]
    except ValueError as error:
        # A whole number of thousands of digits.
        return {}, [f"--ds_config {path}: not valid JSON: {error}"]


def problems(content: dict[str, Any], text: str) -> Iterator[str]:
    """Yield what is wrong with a DeepSpeed configuration; `text` serves to name lines."""
    flat, lines = dict(walk(content)), key_lines(text)
    for key, value in flat.items():
        line = f"line {lines[key]}"
        if key in OWNED:
            yield f"{key!r} belongs to the recipe ({OWNED[key]}); delete {line}"
        elif key in REMOVED:
            yield f"{key!r} was removed from DeepSpeed; delete {line} ({REMOVED[key]})"
        elif key in UNSUPPORTED and (value is True or value not in (None, False, 1)):
            yield f"{key!r}: {UNSUPPORTED[key]} is not supported yet; delete {line}"
        elif "." not in key and key not in {*KNOWN, *UNSUPPORTED}:
            close = difflib.get_close_matches(key, KNOWN, 1)
            yield f"unknown key {key!r} at {line}" + (f"; did you mean {close[0]!r}?" if close else "")
        elif key in UNSUPPORTED:
            continue
        elif key.startswith("zero_optimization.") and key.count(".") == 1 and key.split(".")[1] not in ZERO:
            close = difflib.get_close_matches(key.split(".")[1], ZERO, 1)
            yield f"unknown key {key!r} at {line}" + (f"; did you mean {close[0]!r}?" if close else "")
        elif value == "auto":
            yield f'{key!r} is "auto" at {line}: DeepSpeed would ignore it; give a value or delete the line'
        elif wrong := wrong_value(key, value):
            yield f"{key!r} is {json.dumps(value)} at {line}: {wrong}"
    stage = flat.get("zero_optimization.stage")
    if "zero_optimization" in flat and not isinstance(flat["zero_optimization"], dict):
        yield f"'zero_optimization' must be an object, such as {{\"stage\": 3}}, at line {lines['zero_optimization']}"
    elif stage != 3:
        yield f"'zero_optimization.stage' must be 3, not {json.dumps(stage)}: the engine is built on ZeRO-3"


def wrong_value(key: str, value: Any) -> str | None:
    """What is wrong with the value of a key whose type is known, if anything (the stage has a message of its own)."""
    if key == "zero_optimization.stage":
        return None
    expected = TOP.get(key) if "." not in key else ZERO.get(key.removeprefix("zero_optimization."))
    return None if expected is None or TYPES[expected](value) else f"must be {expected}"


def walk(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key as a dotted path with its value, outer keys first."""
    for key, value in content.items():
        yield f"{prefix}{key}", value
        # Inside something that must go altogether, its parts need no words of their own.
        if isinstance(value, dict) and f"{prefix}{key}" not in {*OWNED, *REMOVED, *UNSUPPORTED}:
            yield from walk(value, f"{prefix}{key}.")


def key_lines(text: str) -> dict[str, int]:
    """Line on which each key of a JSON text is written, by dotted path (objects inside lists count as their list's)."""
    lines: dict[str, int] = {}
    path: list[str] = []
    for found in re.finditer(r'(?P<string>"(?:\\.|[^"\\])*")(?P<colon>\s*:)?|(?P<brace>[{}])', text):
        if found["brace"] == "{":
            path.append("")
        elif found["brace"] == "}":
            path.pop()
        elif found["colon"]:
            path[-1] = json.loads(found["string"])
            lines[".".join(path)] = text.count("\n", 0, found.start()) + 1
    return lines
