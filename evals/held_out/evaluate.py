"""Score a causal language model on tasks: one process, or every rank of a sharded model together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from evals.config import TaskConfig
from evals.errors import EvalError
from evals.held_out import bits_per_byte, continuation_choice, response_bits_per_byte
from evals.scoring.rows import Encode, Example, fingerprint
from evals.scoring.scorer import Answer, Scorer
from evals.scoring.stopping import Stopped

TASKS: dict[str, Any] = {
    "bits_per_byte": bits_per_byte,
    "continuation_choice": continuation_choice,
    "response_bits_per_byte": response_bits_per_byte,
}
"""Kind of task -> module with `build`, `summarize`, `summarize_posterior`, METRIC and HIGHER_IS_BETTER."""

Sampled = Callable[[int], AbstractContextManager[object]]
"""i -> a context in which a forward uses the i-th draw of the weights from their posterior. These must be the same
weights in every such forward, on every rank and for every batch: the rows of one question may be in different ones."""


def evaluate(
    model: torch.nn.Module,
    *,
    encode: Encode,
    bos_id: int,
    tasks: Mapping[str, TaskConfig],
    seq_len: int,
    batch_tokens: int,
    device: torch.device | str,
    eos_id: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    should_stop: Callable[[], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
    posterior_samples: int = 0,
    sampled: Sampled | None = None,
) -> dict[str, dict[str, Any]] | None:
    """Score the model on every task, in eval mode and without gradients; its train/eval modes are restored.

    With `world_size` > 1 this is a collective: every rank calls it with the same arguments and does the same number of
    forwards (a ZeRO-3 forward gathers parameters from all ranks), and every rank returns all scores. Scores do not
    depend on world size or batch_tokens beyond floating-point noise.

    With `posterior_samples` = k > 0, all rows are scored k more times, once under each draw of the weights, and a
    task's `posterior` judges the average prediction. All else in a result is about the model as it is (with an adapter,
    its posterior mean), so results with and without draws can be compared.

    Args:
        model: a Hugging Face causal LM, or a DeepSpeed engine around one; see evals.scoring.scorer.
        encode: text -> token ids, without special tokens.
        bos_id: id of the beginning-of-text token.
        tasks: tasks by name.
        seq_len: tokens in the longest model input.
        batch_tokens: tokens per forward on each rank, padding included.
        device: where the inputs go.
        eos_id: id of the end-of-text token, which ends responses; None where training puts none.
        rank: this process.
        world_size: processes that call this together.
        should_stop: asked before every forward; its answer must be the same on all ranks. True ends the evaluation.
        progress: called on rank 0 as progress(forwards done, forwards in all).
        posterior_samples: draws of the weights whose average predicts, 0 for none.
        sampled: how to draw them; forwards under the i-th draw run within sampled(i), 0 <= i < posterior_samples.

    Returns:
        {task: {kind, domain, metric, higher_is_better, score, n, stderr, chance, fingerprint, examples}}, with `nll`
        and `ece` where choices are made, and with `posterior` where there are draws; None when stopped.

    Raises:
        EvalError: a task's file or settings cannot be used, or draws are asked for and cannot be made.
    """
    if posterior_samples < 0:
        raise EvalError(f"posterior_samples = {posterior_samples} is negative; use 0 for none, or a number of draws")
    if posterior_samples and sampled is None:
        raise EvalError(
            f"posterior_samples = {posterior_samples} needs `sampled`, which draws the weights; pass it, or 0 samples"
        )
    examples = {name: _build(name, task, encode, bos_id, seq_len, eos_id) for name, task in tasks.items()}
    rows = [row for task_examples in examples.values() for example in task_examples for row in example.rows]
    scorer = Scorer(
        model=model, device=device, pad_id=bos_id, max_length=seq_len, batch_tokens=batch_tokens, rank=rank,
        world_size=world_size, should_stop=should_stop,
    )  # fmt: skip
    draws: Sequence[int | None] = (None, *range(posterior_samples))
    scores = []
    for number, draw in enumerate(draws):
        with nullcontext() if draw is None or sampled is None else sampled(draw):
            try:
                scores.append(dataclasses.replace(scorer, progress=_part(progress, number, len(draws))).score(rows))
            except Stopped:
                return None
    joined = [_by_task(examples, answers) for answers in scores]
    return {
        name: _result(tasks[name], examples[name], joined[0][name], [draw[name] for draw in joined[1:]])
        for name in tasks
    }


def check_tasks(
    tasks: Mapping[str, TaskConfig], *, encode: Encode, bos_id: int, seq_len: int, eos_id: int | None = None
) -> None:
    """Make every task's examples and forget them: what `evaluate` would refuse later is refused now.

    Raises:
        EvalError: a task's file or settings cannot be used.
    """
    for name, task in tasks.items():
        _build(name, task, encode, bos_id, seq_len, eos_id)


def _build(name: str, task: TaskConfig, encode: Encode, bos_id: int, seq_len: int, eos_id: int | None) -> list[Example]:
    if task.kind not in TASKS:
        raise EvalError(f"task {name!r}: {task.kind!r} is not a kind of task; use one of {', '.join(TASKS)}")
    try:
        build = TASKS[task.kind].build
        examples: list[Example] = build(task, encode=encode, bos_id=bos_id, seq_len=seq_len, eos_id=eos_id)
    except EvalError as error:
        raise EvalError(f"task {name!r}: {error}") from error
    return examples


def _part(progress: Callable[[int, int], None] | None, number: int, parts: int) -> Callable[[int, int], None] | None:
    """Progress in one of several equal parts, told as progress in the whole."""
    if progress is None:
        return None
    return lambda done, count: progress(number * count + done, parts * count)


def _by_task(examples: Mapping[str, list[Example]], answers: list[Answer]) -> dict[str, list[list[float]]]:
    """The log-likelihoods of all rows in order, as {task: for each example, those of its rows}."""
    values = iter(answers)
    return {name: [[next(values).loglikelihood for _ in ex.rows] for ex in of] for name, of in examples.items()}


def _result(
    task: TaskConfig,
    examples: list[Example],
    loglikelihoods: list[list[float]],
    draws: list[list[list[float]]],
) -> dict[str, Any]:
    kind = TASKS[task.kind]
    posterior = {"posterior": kind.summarize_posterior(task, examples, draws)} if draws else {}
    return {
        "kind": task.kind,
        "domain": task.domain,
        "metric": kind.METRIC,
        "higher_is_better": kind.HIGHER_IS_BETTER,
        "n": len(examples),
        "fingerprint": fingerprint(examples),
        **posterior,
        **kind.summarize(task, examples, loglikelihoods),
    }
