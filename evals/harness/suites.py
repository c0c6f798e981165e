"""The suites: which tasks they hold, and which figure of a task is its score. Standard library only.

forgetting and the learning suites are those of "LoRA Learns Less and Forgets Less" (arXiv 2405.09673): forgetting is the
mean of HellaSwag, ARC-challenge and WinoGrande; code is HumanEval pass@1 of 50 samples, and of 256 for pass@k; mathematics
is GSM8K with five examples in the prompt. commonsense holds the tasks on which MonteCLoRA is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Domain = Literal["new", "old"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task of lm-evaluation-harness as the suites use it; what is None is as the task itself says."""

    name: str
    """lm-evaluation-harness's name."""
    metric: str | None = None
    """The metric that is the score; None = the first that the task lists."""
    filter: str | None = None
    """The filter through which an answer is read for the score; None = the first that the task lists."""
    samples: int | None = None
    """Answers per prompt, for tasks that write text."""
    temperature: float | None = None
    """Temperature of the draws; 0 = greedy."""
    top_p: float | None = None
    """Probability mass that is drawn from."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Tasks that are scored together."""

    domain: Domain
    """new: what a run is taught. old: what the base model knew."""
    tasks: tuple[str, ...]
    """Names in TASKS."""
    about: str
    """What it measures, for people."""


TASKS: dict[str, Task] = {
    "hellaswag": Task(name="hellaswag", metric="acc_norm"),
    "arc_challenge": Task(name="arc_challenge", metric="acc_norm"),
    "winogrande": Task(name="winogrande", metric="acc"),
    "humaneval": Task(name="humaneval", samples=50, temperature=0.2, top_p=0.95),
    "humaneval-256": Task(name="humaneval", samples=256, temperature=0.8, top_p=0.95),
    "gsm8k": Task(name="gsm8k", metric="exact_match", filter="strict-match"),
    "boolq": Task(name="boolq", metric="acc"),
    "piqa": Task(name="piqa", metric="acc"),
    "social_iqa": Task(name="social_iqa", metric="acc"),
    "arc_easy": Task(name="arc_easy", metric="acc"),
    "openbookqa": Task(name="openbookqa", metric="acc_norm"),
}
"""Tasks whose score is settled here, by the name they have in results. Others are scored as they say themselves."""

SUITES: dict[str, Suite] = {
    "forgetting": Suite(
        domain="old", tasks=("hellaswag", "arc_challenge", "winogrande"), about="what the base model knew"
    ),
    "learning-code": Suite(domain="new", tasks=("humaneval",), about="programming: pass@1 of 50 samples"),
    "learning-code-256": Suite(domain="new", tasks=("humaneval-256",), about="programming: pass@k of 256 samples"),
    "learning-math": Suite(domain="new", tasks=("gsm8k",), about="school mathematics, five examples in the prompt"),
    "commonsense": Suite(
        domain="old",
        tasks=(
            "boolq",
            "piqa",
            "social_iqa",
            "hellaswag",
            "winogrande",
            "arc_easy",
            "arc_challenge",
            "openbookqa",
        ),
        about="everyday knowledge and reasoning",
    ),
}
"""Suites by name."""
