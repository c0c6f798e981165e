"""Score a Hugging Face model folder on one device: `python -m evals run`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evals.config import EvalConfig, TaskConfig
from evals.errors import EvalError
from evals.results import SCHEMA, write_json


def parse_task(text: str, max_examples: int = 200) -> tuple[str, TaskConfig]:
    """NAME=KIND:DOMAIN:PATH -> (name, task).

    Raises:
        EvalError: the text does not have that form.
    """
    name, _, rest = text.partition("=")
    kind, _, rest = rest.partition(":")
    domain, _, path = rest.partition(":")
    if not (name and kind and domain and path):
        raise EvalError(f"--task {text!r} is not NAME=KIND:DOMAIN:PATH, e.g. code=bits_per_byte:new:heldout.jsonl")
    # The literals are checked by TaskConfig.problems, with every other problem.
    return name, TaskConfig(kind=kind, domain=domain, path=Path(path), max_examples=max_examples)  # type: ignore[arg-type]


def score_folder(
    model_dir: Path,
    tasks: Mapping[str, TaskConfig],
    *,
    tokenizer: Path | None = None,
    seq_len: int = 1024,
    batch_rows: int = 8,
    device: str = "auto",
    dtype: str = "float32",
    out: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Load a model, score it, print the scores and optionally write them as an evals/<step>.json of step 0.

    Raises:
        EvalError: a task, the model folder, the tokenizer or the device cannot be used.
    """
    config = EvalConfig(tasks=dict(tasks), batch_rows=batch_rows)
    limit = _max_positions(Path(model_dir))
    problems = [*config.problems(), *config.seq_len_problems(seq_len)]
    if seq_len < 1 or (limit is not None and seq_len > limit):
        problems.append(
            ("seq_len", f"{seq_len} is outside 1..{limit}, the positions of this model; pass --seq-len {limit}")
        )
    if problems:
        raise EvalError(
            "the evaluation cannot start:" + "".join(f"\n  {field}: {message}" for field, message in problems)
        )

    import torch

    from evals.encoder import load_encoder
    from evals.held_out.evaluate import evaluate

    encode, bos_id = load_encoder(tokenizer if tokenizer is not None else Path(model_dir))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _load_model(Path(model_dir), device, getattr(torch, dtype))
    bos_id = bos_id if bos_id is not None else model.config.bos_token_id
    if bos_id is None:
        raise EvalError(
            f"{model_dir}: neither the tokenizer nor config.json names a beginning-of-text token; set bos_token_id"
        )
    begun = time.perf_counter()
    result = evaluate(
        model, encode=encode, bos_id=bos_id, tasks=tasks, seq_len=seq_len, batch_rows=batch_rows, device=device
    )
    assert result is not None, "nothing could have stopped it"
    seconds = time.perf_counter() - begun
    for name, task in result.items():
        print(describe(name, task))
    if out is not None:
        write_json(Path(out), {"schema": SCHEMA, "step": 0, "seconds": seconds, "model": model_dir, "tasks": result})
    return result


def describe(name: str, task: Mapping[str, Any]) -> str:
    """One line about a task's score, and about its probabilities where choices are made."""
    error = "" if task["stderr"] is None else f" +- {task['stderr']:.4f}"
    chance = "" if task["chance"] is None else f", chance {task['chance']:.4f}"
    calibration = "".join(f", {key} {_number(task[key])}" for key in ("nll", "ece") if key in task)
    return f"{name}: {task['metric']} {task['score']:.4f}{error} (n {task['n']}{chance}){calibration}"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _max_positions(model_dir: Path) -> int | None:
    file = model_dir / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvalError(
            f"{model_dir}: no readable config.json there ({error}); give a Hugging Face model folder"
        ) from error
    limit: int | None = config.get("max_position_embeddings")
    return limit


def _load_model(model_dir: Path, device: str, dtype: Any) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype, local_files_only=True)
        return model.to(device)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EvalError(f"{model_dir}: cannot be loaded as a causal language model on {device} ({error})") from error
