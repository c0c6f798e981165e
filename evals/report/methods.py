"""A method: one run that started from a pretrained model, its evaluations before and after training paired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evals.arithmetic.forgetting import Changes, Estimate, average, changes, estimate, nll_changes
from evals.errors import EvalError
from evals.results import Run

METRICS = ("bits_per_byte", "accuracy")


@dataclass(frozen=True)
class Method:
    """A run that started from a pretrained model and was scored before and after training."""

    name: str
    label: str
    run: Run
    final_step: int
    initial: dict[str, Any]
    final: dict[str, Any]
    changes: dict[str, Changes]
    nll_changes: dict[str, Changes]

    def tasks(self, domain: str, metric: str) -> list[str]:
        """Names of the tasks of a domain with a metric that were scored both times."""
        return [
            t for t in self.changes if self.final[t].get("domain") == domain and self.final[t].get("metric") == metric
        ]

    def effect(self, domain: str, metric: str) -> Estimate | None:
        """Learned (new domain) or forgotten (old domain), averaged over tasks; None without such a task."""
        parts = [estimate(self.changes[task]) for task in self.tasks(domain, metric)]
        if not parts:
            return None
        return average(parts) if domain == "new" else average(parts).negated()


def span(run: Run) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """The tasks' results at step 0, the last step scored, and the tasks' results there.

    Raises:
        EvalError: the run was not scored both before and after training, or a file cannot be read.
    """
    if 0 not in run.eval_steps:
        raise EvalError("not scored before training: no evals/0.json; keep at_start on")
    if run.eval_steps[-1] == 0:
        raise EvalError("not scored after training yet: evals/0.json is the only evaluation")
    last = run.eval_steps[-1]
    return run.result(0)["tasks"], last, run.result(last)["tasks"]


def measure(run: Run, name: str = "", label: str = "") -> Method:
    """Pair a run's first and last evaluation.

    Raises:
        EvalError: they cannot be paired; the message says why.
    """
    initial, step, final = span(run)
    paired, paired_nll = {}, {}
    for task in [task for task in initial if task in final]:
        try:
            paired[task] = changes(initial[task], final[task])
            in_nll = nll_changes(initial[task], final[task])
        except EvalError as error:
            raise EvalError(f"task {task!r}: {error}") from error
        if in_nll is not None:
            paired_nll[task] = in_nll
    return Method(name or run.path.name, label or run.label, run, step, initial, final, paired, paired_nll)
