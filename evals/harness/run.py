"""Evaluate a model on tasks of the harness: load, ask, judge, and make the entries of evals/<step>.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evals.code.policy import Policy
from evals.encoder import Codec
from evals.errors import EvalError
from evals.harness.entries import entry
from evals.harness.kept import Kept
from evals.harness.language_model import ScorerLM
from evals.harness.programs import evaluate_programs
from evals.harness.specs import TaskSpec
from evals.harness.tasks import LoadedTask, compiled_templates, load_tasks, quiet
from evals.scoring.scorer import Scorer

SHOT_SEED = 1234
"""The harness's seed of the draw of solved examples."""


def evaluate_suites(
    scorer: Scorer,
    codec: Codec,
    specs: Sequence[TaskSpec],
    *,
    data_dir: Path | None = None,
    policy: Policy | None = None,
    kept: Kept | None = None,
    seed: int = 0,
    max_new_tokens: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Load and evaluate; see `check_suites` and `evaluate_tasks`."""
    tasks = check_suites(
        specs, data_dir=data_dir, policy=policy, max_length=scorer.max_length, max_new_tokens=max_new_tokens
    )
    return evaluate_tasks(scorer, codec, tasks, policy=policy, kept=kept, seed=seed, progress=progress)


def check_suites(
    specs: Sequence[TaskSpec],
    *,
    data_dir: Path | None = None,
    policy: Policy | None = None,
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    say: Callable[[str], None] = print,
) -> list[LoadedTask]:
    """Everything that evaluation would refuse, before a model is there; the loaded tasks, for `evaluate_tasks`.

    `say` is told when programs will run without isolation.

    Raises:
        EvalError: what `load_tasks` refuses, or a machine that cannot isolate programs.
    """
    tasks = load_tasks(specs, data_dir=data_dir, max_length=max_length, max_new_tokens=max_new_tokens)
    if any(task.is_code for task in tasks):
        from evals.code.sandbox import check

        if warning := check(policy or Policy()):
            say(f"WARNING: {warning}")
    return tasks


def evaluate_tasks(
    scorer: Scorer,
    codec: Codec,
    tasks: Sequence[LoadedTask],
    *,
    policy: Policy | None = None,
    kept: Kept | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """A model's entries on loaded tasks. On several ranks a collective with equal arguments and results.

    Args:
        scorer: the model.
        codec: its tokenizer.
        tasks: what to evaluate, in this order.
        policy: limits on programs that the model writes.
        kept: answers from before, and where new ones go; what it holds is not asked again.
        seed: seed of the samples of tasks that write text.
        progress: called on rank 0 as progress(task, requests answered, of how many).

    Raises:
        EvalError: requests that this model cannot be asked, e.g. answers longer than its longest input.
        Stopped: the scorer was asked to stop; what was answered is kept.
    """
    kept = kept if kept is not None else Kept()
    with compiled_templates():
        return {
            loaded.spec.name: _evaluate(loaded, scorer, codec, policy or Policy(), kept, seed, progress)
            for loaded in tasks
        }


def build_requests(loaded: LoadedTask) -> None:
    """Make the task's requests, as the harness does; a task can be asked again and again."""
    task = loaded.task
    if task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(SHOT_SEED)
    with quiet():
        try:
            task.build_all_requests(limit=loaded.spec.examples)
        except (ValueError, KeyError, AssertionError) as error:
            raise EvalError(
                f"{loaded.spec.name}: its requests cannot be made ({error}); are all fields in its records, and as many "
                f"records as the {loaded.shots} shown examples need?"
            ) from error


def _evaluate(
    loaded: LoadedTask,
    scorer: Scorer,
    codec: Codec,
    policy: Policy,
    kept: Kept,
    seed: int,
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, Any]:
    name, task = loaded.spec.name, loaded.task
    lm = ScorerLM(
        scorer,
        codec,
        kept=kept,
        seed=seed,
        progress=None if progress is None else lambda done, total: progress(name, done, total),
    )
    build_requests(loaded)
    result = evaluate_programs(loaded, lm, policy) if loaded.is_code else _answered(loaded, lm)
    examples = result.pop("examples")
    task._instances = None  # the texts of ten thousand questions need not stay until the next evaluation
    return result | {
        "truncated": lm.truncated.total(),
        "not_finite": lm.not_finite.total(),
        "examples": examples,
    }


def _answered(loaded: LoadedTask, lm: ScorerLM) -> dict[str, Any]:
    """Ask every request as often as the harness would, and read the answers through the task's filters."""
    by_type: dict[str, list[Any]] = {}
    for instance in loaded.task.instances:
        by_type.setdefault(instance.request_type, []).extend([instance] * instance.repeats)
    for request_type, requests in by_type.items():
        for request, answer in zip(requests, getattr(lm, request_type)(requests), strict=True):
            request.resps.append(answer)
    loaded.task.apply_filters()
    return entry(loaded)
