"""A method: one run that started from a pretrained model, its evaluations before and after training paired."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from evals.arithmetic.bootstrap import estimate_mean
from evals.arithmetic.forgetting import UNITS, Changes, Estimate, changes, nll_changes, without_subsets
from evals.errors import EvalError
from evals.harness.suites import SUITES
from evals.results import Run

METRICS = ("bits_per_byte", "accuracy")
FORGETTING_AVERAGE = "forgetting average (HellaSwag, ARC-challenge, WinoGrande)"
"""The mean over the forgetting suite, for people."""
Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Method:
    """A run that started from a pretrained model and was scored before and after training.

    Attributes:
        name: of the run among those reported.
        label: what people call it.
        run: its folder.
        final_step: the last step at which it was scored.
        initial: the tasks' results at step 0.
        final: those at the last step.
        changes: of every task scored both times.
        nll_changes: of those that have an NLL.
        left_out: task -> why it was not compared.
        damaged: a message for each file of results that could not be used.
    """

    name: str
    label: str
    run: Run
    final_step: int
    initial: dict[str, Any]
    final: dict[str, Any]
    changes: dict[str, Changes]
    nll_changes: dict[str, Changes]
    left_out: dict[str, str]
    damaged: tuple[str, ...]

    def tasks(self, domain: str, metric: str) -> list[str]:
        """The tasks that what was learned or forgotten in a metric is the mean of, as `averaged` says."""
        return averaged(self.final, self.changes, domain, metric)

    def effect(self, domain: str, metric: str) -> Estimate | None:
        """Learned (new domain) or forgotten (old domain), averaged over tasks; None without such a task."""
        tasks = self.tasks(domain, metric)
        if not tasks:
            return None
        improvement = estimate_mean([self.changes[task] for task in tasks])
        return improvement if domain == "new" else improvement.negated()


def averaged(results: Results, names: Iterable[str], domain: str, metric: str) -> list[str]:
    """The tasks over which a domain's mean in a metric is taken.

    Args:
        results: task -> its result.
        names: the tasks to choose from.
        domain: new or old.
        metric: bits_per_byte or accuracy.

    Returns:
        All of the domain and metric, without those of which a larger part is among them. The old domain's accuracy is
        that of the forgetting suite where all of its tasks are among them: other tasks do not change that mean then.
    """
    chosen = without_subsets(
        name for name in names if results[name].get("domain") == domain and results[name].get("metric") == metric
    )
    suite = forgetting_suite(results, chosen) if (domain, metric) == ("old", "accuracy") else []
    return suite or chosen


def forgetting_suite(results: Results, names: Iterable[str]) -> list[str]:
    """Of the names those that are the forgetting suite's tasks, one for each in the suite's order; [] unless all are.

    Of a task that was scored with several numbers of shots, the one that the suite itself asked for counts.
    """
    found: dict[str, str] = {}
    for name in sorted(names, key=lambda name: results[name].get("suite") != "forgetting"):
        found.setdefault((results[name].get("harness") or {}).get("task", ""), name)
    tasks = SUITES["forgetting"].tasks
    return [found[task] for task in tasks] if all(task in found for task in tasks) else []


def measure(run: Run, name: str = "", label: str = "") -> Method:
    """Pair a run's first and last evaluation.

    Raises:
        EvalError: they cannot be paired; the message says why.
    """
    before, step, after = span(run)
    initial, final = before["tasks"], after["tasks"]
    damaged = (*before["damaged"], *after["damaged"])
    left_out = {task: f"not scored before training, only at step {step}" for task in final if task not in initial}
    left_out |= {task: f"not scored at step {step}, only before training" for task in initial if task not in final}
    common = [task for task in initial if task in final]
    unpaired = [task for task in common if final[task].get("metric") not in UNITS]
    left_out |= {t: f"its metric, {final[t].get('metric')}, is no mean over examples" for t in unpaired}
    paired, paired_nll = {}, {}
    for task in [task for task in common if task not in unpaired]:
        try:
            paired[task] = changes(initial[task], final[task])
            in_nll = nll_changes(initial[task], final[task])
        except EvalError as error:
            raise EvalError(f"task {task!r}: {error}") from error
        if in_nll is not None:
            paired_nll[task] = in_nll
    if not paired:
        reasons = "; ".join([*(f"{task}: {reason}" for task, reason in left_out.items()), *damaged])
        raise EvalError(f"no task was scored both before training and at step {step}: {reasons or 'there are none'}")
    return Method(
        name=name or run.path.name,
        label=label or run.label,
        run=run,
        final_step=step,
        initial=initial,
        final=final,
        changes=paired,
        nll_changes=paired_nll,
        left_out=left_out,
        damaged=damaged,
    )


def span(run: Run) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """The results at step 0, the last step scored, and the results there.

    Raises:
        EvalError: the run was not scored both before and after training, or a file cannot be read.
    """
    if 0 not in run.eval_steps:
        raise EvalError("not scored before training: no evals/0.json; keep at_start on")
    if run.eval_steps[-1] == 0:
        raise EvalError("not scored after training yet: evals/0.json is the only evaluation")
    last = run.eval_steps[-1]
    return run.result(0), last, run.result(last)
