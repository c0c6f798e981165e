"""What to score, and how: the request behind `python -m evals run`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evals.config import TaskConfig
from evals.errors import EvalError
from evals.harness.specs import TaskSpec


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to score, and how."""

    model: Path
    """A model's, an adapter's or a run's folder."""
    tasks: Mapping[str, TaskConfig] = field(default_factory=dict)
    """Tasks on held-out text by name."""
    suites: Sequence[TaskSpec] = ()
    """Tasks of the harness."""
    data_dir: Path | None = None
    """Folder of the harness's data sets; None = the hub."""
    allow_unisolated: bool = False
    """Run programs that the model writes even where they cannot be isolated."""
    base: Path | None = None
    """Where an adapter's base is; None = where the adapter says."""
    tokenizer: Path | None = None
    """The tokenizer's file or folder; None = the model's folder."""
    seq_len: int | None = None
    """Tokens in the longest model input; None = the model's, and HELD_OUT_LENGTH for held-out text."""
    batch_tokens: int | None = None
    """Tokens per forward, padding included; None = 8192 on a GPU, and 1024 on a CPU, which is slower with more."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto = cuda where there is one."""
    dtype: str = "float32"
    """float32, bfloat16 or float16."""
    seed: int = 0
    """Seed of samples."""
    max_new_tokens: int | None = None
    """Answers are no longer than this, whatever a task says; None = as the tasks say."""
    out: Path | None = None
    """Where the result goes as JSON."""
    run: Path | None = None
    """The run whose result it is; with `step`, it goes to its evals/."""
    step: int | None = None
    """Optimizer steps that the model has had in that run."""

    @property
    def name(self) -> str:
        """The name of the result among those of its step: what was asked for."""
        specs = dict.fromkeys(_limited(spec) for spec in self.suites)
        joined = "-".join(re.sub(r"[^A-Za-z0-9_]+", "-", part) for part in [*specs, *self.tasks])
        return joined if len(joined) <= 80 else f"{joined[:70]}-{hashlib.sha256(joined.encode()).hexdigest()[:8]}"

    @property
    def kept(self) -> Path | None:
        """Where answers are kept, None when there is no place that outlives the command."""
        if self.run is not None:
            return Path(self.run) / "evals" / "kept" / f"{self.step}.{self.name}.jsonl"
        return None if self.out is None else Path(self.out).with_suffix(".kept.jsonl")


def _limited(spec: TaskSpec) -> str:
    """The suite or, without one, the task, and how many examples of it."""
    if spec.suite is None:
        return spec.name
    return spec.suite if spec.examples is None else f"{spec.suite}@{spec.examples}"


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
