"""Tasks whose answers are programs: the model's completions, each judged in the sandbox."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from evals.code.judge import judge
from evals.code.policy import Policy
from evals.code.program import Program, Verdict
from evals.code.result import summarize
from evals.errors import EvalError
from evals.harness.entries import fingerprint, protocol
from evals.harness.language_model import ScorerLM
from evals.harness.tasks import LoadedTask
from evals.scoring.scorer import Scorer
from evals.scoring.stopping import Stopped

PROGRAMS_AT_ONCE = 256
"""Programs between two times that ranks exchange verdicts, on each rank."""

MOST_WORKERS = 8
"""Programs that run at one time on each machine."""


def evaluate_programs(loaded: LoadedTask, lm: ScorerLM, policy: Policy) -> dict[str, Any]:
    """The entry of a task whose answers are programs; its instances are built but not answered.

    Raises:
        EvalError: programs cannot be isolated here.
        Stopped: the scorer was asked to stop.
    """
    instances = loaded.task.instances
    written = lm.write(instances, [instance.repeats for instance in instances], is_after_newline=True)
    texts = [[_code(text.text, loaded.is_fenced) for text in of_problem] for of_problem in written]
    ids = [str(instance.doc.get("task_id", instance.doc_id)) for instance in instances]
    programs = [
        Program(
            id=problem,
            sample=sample,
            source=instance.doc["prompt"] + text,
            test=instance.doc["test"],
            entry_point=instance.doc["entry_point"],
        )
        for problem, instance, of_problem in zip(ids, instances, texts, strict=True)
        for sample, text in enumerate(of_problem)
    ]
    verdicts = iter(_judged(programs, lm, policy))
    by_problem = [[next(verdicts) for _ in of_problem] for of_problem in texts]
    ks = [2**power for power in range(9)]
    return {
        "kind": "harness",
        "domain": loaded.spec.domain,
        "suite": loaded.spec.suite,
        "metric": "accuracy",
        "higher_is_better": True,
        "chance": 0.0,
        "fingerprint": fingerprint(loaded),
        "harness": protocol(loaded, "pass@1", "none"),
        "metrics": {},
        "mean_tokens": sum(text.tokens for of_problem in written for text in of_problem) / max(1, len(programs)),
        **summarize(ids, texts, by_problem, ks),
    }


def _code(text: str, is_fenced: bool) -> str:
    return text.split("```")[0] if is_fenced else text


def _judged(programs: Sequence[Program], lm: ScorerLM, policy: Policy) -> list[Verdict]:
    """Verdicts on all programs, on all ranks; what was judged before is not judged again.

    Ranks judge their shares of a slice and then exchange verdicts, so that none waits for long.
    """
    scorer = lm.scorer
    keys = [f"verdict {program.key(policy)}" for program in programs]
    missing = {key: program for key, program in zip(keys, programs, strict=True) if key not in lm.kept}
    todo = list(missing.items())
    at_once = PROGRAMS_AT_ONCE * scorer.world_size
    for start in range(0, len(todo), at_once):
        if scorer.should_stop is not None and scorer.should_stop():
            raise Stopped
        part = todo[start : start + at_once]
        mine = part[scorer.rank :: scorer.world_size]
        lm.kept.add(_exchanged(mine, scorer, policy))
    return [Verdict(**lm.kept[key]) for key in keys]


def _exchanged(mine: Sequence[tuple[str, Program]], scorer: Scorer, policy: Policy) -> dict[str, Any]:
    found: dict[str, Any] = {}
    problem: str | None = None
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", scorer.world_size))
    workers = max(1, min(MOST_WORKERS, os.cpu_count() or 1) // local_ranks)
    try:
        verdicts = judge([program for _, program in mine], policy=policy, workers=workers) if mine else []
        found = {key: asdict(verdict) for (key, _), verdict in zip(mine, verdicts, strict=True)}
    except EvalError as error:
        problem = str(error)
    if scorer.world_size > 1:
        import torch.distributed as dist

        parts: list[Any] = [None] * scorer.world_size
        dist.all_gather_object(parts, (found, problem))
        found = {key: verdict for part, _ in parts for key, verdict in part.items()}
        problem = next((text for _, text in parts if text is not None), None)
    if problem is not None:
        raise EvalError(problem)
    return found
