"""What to evaluate, as people write it: [DOMAIN=]NAME[:SHOTS][@EXAMPLES]. Standard library only.

NAME is a suite, a task of lm-evaluation-harness, or a task file (.yaml); "forgetting@200" is the first 200 examples of
every task of the suite, "new=mmlu:5" is MMLU with five examples in the prompt as something that is taught.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from evals.errors import EvalError
from evals.harness.suites import SUITES, TASKS, Domain, Task

FORM = "[DOMAIN=]NAME[:SHOTS][@EXAMPLES], e.g. forgetting, hellaswag:10@200 or new=my_task.yaml"


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task to evaluate."""

    name: str
    """Its name in results: the specification without the domain, e.g. hellaswag:10@200."""
    task: Task
    """What is asked, and which of its figures is the score."""
    domain: Domain
    """new: improvement is learning. old: loss is forgetting."""
    suite: str | None = None
    """The suite, or group of tasks, it was named by."""
    shots: int | None = None
    """Solved examples in the prompt; None = as many as the task says."""
    examples: int | None = None
    """Only this many first examples; None = all."""

    @property
    def is_file(self) -> bool:
        """Whether the task is a task file of the user's."""
        return self.task.name.endswith((".yaml", ".yml"))


def parse_specs(texts: Sequence[str]) -> list[TaskSpec]:
    """Specifications, suites expanded into their tasks, in the order given.

    A task of two suites is scored once, as the first one's.

    Raises:
        EvalError: texts that do not have the form, or name one task twice; all of them are listed.
    """
    specs: list[TaskSpec] = []
    problems: list[str] = []
    first: dict[str, tuple[TaskSpec, str]] = {}
    for text in texts:
        try:
            parsed = _parse(text.strip())
        except EvalError as error:
            problems.append(str(error))
            continue
        for spec in parsed:
            if spec.name not in first:
                first[spec.name] = spec, text
                specs.append(spec)
                continue
            before, source = first[spec.name]
            if before.suite == spec.suite or before.domain != spec.domain or before.task != spec.task:
                problems.append(f"{spec.name} is named twice, by {source!r} and {text!r}; name it once")
    if problems:
        raise EvalError("; ".join(problems))
    return specs


def resampled(
    specs: Sequence[TaskSpec], *, samples: int | None = None, temperature: float | None = None
) -> list[TaskSpec]:
    """The tasks, those that sample with another number of samples or temperature, which their names then say.

    Raises:
        EvalError: no task samples, or the number or temperature cannot be used.
    """
    if samples is None and temperature is None:
        return list(specs)
    if not any(spec.task.samples for spec in specs):
        sampling = ", ".join(name for name, task in TASKS.items() if task.samples)
        raise EvalError(f"samples and temperature are for tasks that sample ({sampling}), and none is named; drop them")
    if samples is not None and samples < 1:
        raise EvalError(f"{samples} samples per prompt cannot be judged; use 1 or more")
    if temperature is not None and not 0 <= temperature < float("inf"):
        raise EvalError(f"{temperature} is not a temperature; use 0 for the likeliest answer, or a positive number")
    return [_resampled(spec, samples, temperature) if spec.task.samples else spec for spec in specs]


def _resampled(spec: TaskSpec, samples: int | None, temperature: float | None) -> TaskSpec:
    task = dataclasses.replace(
        spec.task,
        samples=spec.task.samples if samples is None else samples,
        temperature=spec.task.temperature if temperature is None else temperature,
    )
    if task == spec.task:
        return spec
    base, *rest = re.split(r"(?=[:@])", spec.name, maxsplit=1)
    name = "".join([f"{base}-n{task.samples}-t{task.temperature:g}", *rest])
    return dataclasses.replace(spec, name=name, task=task)


def _parse(text: str) -> list[TaskSpec]:
    # A path may hold any of the three signs in its folders; what follows the last / is the end of the specification.
    match = re.fullmatch(
        r"(?:(?P<domain>[^=/]*)=)?(?P<name>(?:.*/)?[^:@/]*)(?::(?P<shots>[^:@/]*))?(?:@(?P<examples>[^:@/]*))?", text
    )
    if match is None or not match["name"]:
        raise EvalError(f"{text!r} does not have the form {FORM}")
    domain, name, shots, examples = match.group("domain", "name", "shots", "examples")
    if domain is not None and domain not in get_args(Domain):
        raise EvalError(f"{text!r}: {domain!r} is not a domain; use new (taught) or old (not to be forgotten)")
    if shots is not None and not shots.isdecimal():
        raise EvalError(f"{text!r}: {shots!r} is not a number of examples in the prompt; use 0 or more after the colon")
    if examples is not None and (not examples.isdecimal() or int(examples) < 1):
        raise EvalError(f"{text!r}: {examples!r} is not a number of examples to score; use 1 or more after the @")
    suffix = (f":{int(shots)}" if shots is not None else "") + (f"@{int(examples)}" if examples is not None else "")
    suite = SUITES.get(name)
    return [
        TaskSpec(
            name=(Path(member).stem if member.endswith((".yaml", ".yml")) else member) + suffix,
            task=TASKS.get(member, Task(name=member)),
            domain=domain or (suite.domain if suite else "old"),  # type: ignore[arg-type]
            suite=name if suite else None,
            shots=None if shots is None else int(shots),
            examples=None if examples is None else int(examples),
        )
        for member in (suite.tasks if suite else (name,))
    ]
