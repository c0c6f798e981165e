"""Score a causal language model on tasks: one process, or every rank of a sharded model together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from evals.config import TaskConfig
from evals.errors import EvalError
from evals.held_out import bits_per_byte, continuation_choice
from evals.scoring.rows import Encode, Example, Row, fingerprint

TASKS: dict[str, Any] = {"bits_per_byte": bits_per_byte, "continuation_choice": continuation_choice}
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
    batch_rows: int,
    device: torch.device | str,
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
    depend on world size or batch_rows beyond floating-point noise.

    With `posterior_samples` = k > 0, all rows are scored k more times, once under each draw of the weights, and a
    task's `posterior` judges the average prediction. All else in a result is about the model as it is (with an adapter,
    its posterior mean), so results with and without draws can be compared.

    Args:
        model: called as `model(input_ids=, attention_mask=, use_cache=False).logits`: a Hugging Face causal LM or a
            DeepSpeed engine around one.
        encode: text -> token ids, without special tokens.
        bos_id: id of the beginning-of-text token.
        tasks: tasks by name.
        seq_len: tokens in the longest model input.
        batch_rows: rows per forward on each rank.
        device: where the inputs go.
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
    examples = {name: _build(name, task, encode, bos_id, seq_len) for name, task in tasks.items()}
    rows = [row for task_examples in examples.values() for example in task_examples for row in example.rows]
    batches = _deal(rows, rank, world_size, batch_rows)
    draws: Sequence[int | None] = (None, *range(posterior_samples))
    forwards = [(draw, batch) for draw in draws for batch in batches]
    scores: dict[int | None, dict[int, float]] = {draw: {} for draw in draws}
    with _eval_mode(model), torch.no_grad():
        for done, (draw, batch) in enumerate(forwards, start=1):
            if should_stop is not None and should_stop():
                return None
            with nullcontext() if draw is None or sampled is None else sampled(draw):
                values = row_loglikelihoods(model, [rows[index] for index in batch], pad_id=bos_id, device=device)
            scores[draw].update(zip(batch, values, strict=True))
            if progress is not None and rank == 0:
                progress(done, len(forwards))
    joined = [_by_task(examples, _join(scores[draw], len(rows), world_size)) for draw in draws]
    return {
        name: _result(tasks[name], examples[name], joined[0][name], [draw[name] for draw in joined[1:]])
        for name in tasks
    }


def check_tasks(tasks: Mapping[str, TaskConfig], *, encode: Encode, bos_id: int, seq_len: int) -> None:
    """Make every task's examples and forget them: what `evaluate` would refuse later is refused now.

    Raises:
        EvalError: a task's file or settings cannot be used.
    """
    for name, task in tasks.items():
        _build(name, task, encode, bos_id, seq_len)


def row_loglikelihoods(
    model: torch.nn.Module, rows: Sequence[Row], *, pad_id: int, device: torch.device | str
) -> list[float]:
    """Score rows in one forward: log p(row.ids[row.first:] | row.ids[:row.first]) in nats for each.

    Rows are padded on the right, where causal attention cannot see the padding. Only the logits of scored positions are
    turned into fp32 log-probabilities, one row at a time.
    """
    width = max(len(row.ids) for row in rows) - 1
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        input_ids[index, : len(row.ids) - 1] = torch.tensor(row.ids[:-1])
        attention_mask[index, : len(row.ids) - 1] = 1
    logits = model(input_ids=input_ids.to(device), attention_mask=attention_mask.to(device), use_cache=False).logits
    sums = []
    for row, row_logits in zip(rows, logits, strict=True):
        targets = torch.tensor(row.ids[row.first :], device=row_logits.device)
        scored = row_logits[row.first - 1 : len(row.ids) - 1].float()
        sums.append(-F.cross_entropy(scored, targets, reduction="none").double().sum())
    return [float(value) for value in torch.stack(sums).tolist()]


def _build(name: str, task: TaskConfig, encode: Encode, bos_id: int, seq_len: int) -> list[Example]:
    if task.kind not in TASKS:
        raise EvalError(f"task {name!r}: {task.kind!r} is not a kind of task; use one of {', '.join(TASKS)}")
    try:
        examples: list[Example] = TASKS[task.kind].build(task, encode=encode, bos_id=bos_id, seq_len=seq_len)
    except EvalError as error:
        raise EvalError(f"task {name!r}: {error}") from error
    return examples


def _deal(rows: Sequence[Row], rank: int, world_size: int, batch_rows: int) -> list[list[int]]:
    """This rank's batches of row indices: as many on every rank, of nearly the same lengths, longest first.

    Longest first, so that a batch that does not fit into memory fails at once. A rank that has run out of rows scores
    the shortest one again; its score is the same wherever it is computed.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids), reverse=True)
    most = -(-len(order) // world_size)
    mine = order[rank::world_size]
    batches = [mine[start : start + batch_rows] for start in range(0, most, batch_rows)]
    return [batch or [order[-1]] for batch in batches]


def _join(scores: dict[int, float], num_rows: int, world_size: int) -> list[float]:
    parts: list[dict[int, float]] = [scores]
    if world_size > 1:
        parts = [{} for _ in range(world_size)]
        dist.all_gather_object(parts, scores)
    joined: dict[int, float] = {}
    for part in parts:
        joined.update(part)
    assert len(joined) == num_rows, (len(joined), num_rows)
    return [joined[index] for index in range(num_rows)]


def _by_task(examples: Mapping[str, list[Example]], loglikelihoods: list[float]) -> dict[str, list[list[float]]]:
    """The log-likelihoods of all rows in order, as {task: for each example, those of its rows}."""
    values = iter(loglikelihoods)
    return {name: [[next(values) for _ in ex.rows] for ex in of_task] for name, of_task in examples.items()}


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


@contextmanager
def _eval_mode(model: torch.nn.Module) -> Iterator[None]:
    # Mode by mode: a part that was in eval mode during training (a frozen dropout) must stay so.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
