"""What is evaluated, and when. Standard library only."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Literal, get_args

from evals.errors import EvalError
from evals.harness.specs import TaskSpec, parse_specs

Kind = Literal["bits_per_byte", "continuation_choice", "response_bits_per_byte"]
Domain = Literal["new", "old"]


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One evaluation on held-out text."""

    kind: Kind
    """bits_per_byte: bits needed per byte of text. continuation_choice: how often the true continuation is found.
    response_bits_per_byte: bits needed per byte of the response to a prompt."""
    path: Path
    """JSONL file (optionally .gz) with a document per line: text (or prompt and response), and an id that is unique in it."""
    domain: Domain
    """new: what the run is taught, improvement = learned. old: what the base model knew, loss = forgotten."""
    max_examples: int = 200
    """Documents, questions (continuation_choice) or responses to score at most, drawn with the seed."""
    max_document_bytes: int = 8192
    """Only this many first UTF-8 bytes of a document are used, so that no document dominates; 0 = whole documents.
    Responses are always whole: with their prompts, they fit into a row or are left out."""
    context_tokens: int = 64
    """continuation_choice: tokens the model sees before the continuation."""
    continuation_tokens: int = 24
    """continuation_choice: tokens in each continuation."""
    num_choices: int = 4
    """continuation_choice: continuations to choose from, one of them true; chance level is 1 / num_choices."""
    prompt_field: str = "prompt"
    """response_bits_per_byte: field that holds the prompt."""
    response_field: str = "response"
    """response_bits_per_byte: field that holds the response."""
    document_field: str | None = None
    """response_bits_per_byte: field that says which document a record is from, where several are from one: intervals then take a
    document's records together, which are alike. None = every record stands for itself."""
    template: str | None = None
    """response_bits_per_byte: the prompt as written to the model, with {field} for fields of the record, as the source of the
    training data has it; None = the prompt as it is."""
    seed: int = 0
    """Seed of the draw of documents, contexts and wrong continuations. Scores are comparable only at equal seeds."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, message) for every value that cannot work."""
        if self.kind not in get_args(Kind):
            yield "kind", f"{self.kind!r} is not a kind of task; use one of {', '.join(get_args(Kind))}"
        if self.domain not in get_args(Domain):
            yield (
                "domain",
                f"{self.domain!r} is not a domain; use new (what is taught) or old (what must not be forgotten)",
            )
        yield from _looked_at("path", self._path_problems())
        for name, least in (
            ("max_examples", 1),
            ("max_document_bytes", 0),
            ("context_tokens", 1),
            ("continuation_tokens", 1),
            ("num_choices", 2),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                yield name, f"{getattr(self, name)} is too small; use {least} or more"
        for name in ("prompt_field", "response_field"):
            if not getattr(self, name):
                yield name, f"is empty; name the field that holds the {name.removesuffix('_field')}"
        if self.document_field == "":
            yield (
                "document_field",
                "is empty; name the field that says which document a record is from, or leave it out",
            )
        try:
            fields = self.prompt_fields()
        except ValueError as error:
            yield "template", f"cannot be read ({error}); write fields as {{name}} and a brace itself as {{{{ or }}}}"
        else:
            if self.template is not None and not (fields and all(name.isidentifier() for name in fields)):
                yield "template", f"has the fields {fields}; name at least one, written as {{name}}"

    def _path_problems(self) -> Iterator[tuple[str, str]]:
        if not Path(self.path).is_file():
            yield (
                "path",
                (
                    f"no file at {self.path}; give a JSONL file with text and id on each line, "
                    "or make the demo corpus with `python -m data_pipeline demo`"
                ),
            )

    def prompt_fields(self) -> list[str]:
        """The fields that a prompt is made of, as often as they are in it; ValueError where the template is none."""
        if self.template is None:
            return [self.prompt_field]
        return [name for _, name, _, _ in string.Formatter().parse(self.template) if name is not None]

    def prompt_of(self, texts: Mapping[str, str]) -> str:
        """The prompt of a record, as written to the model, from the texts of its fields."""
        return texts[self.prompt_field] if self.template is None else self.template.format(**texts)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The evaluations of a run."""

    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    """Tasks by name; the names appear in evals/<step>.json and in the report. None = no evaluation."""
    at_start: bool = True
    """Score the model as loaded (step 0). Learning and forgetting are differences to this score."""
    every_steps: int = 0
    """Also score every this many optimizer steps; 0 = only first and last."""
    every: str | None = None
    """The same as a length, such as "0.5e9 tokens", "5 %" or "1 epochs", rounded to whole steps; instead of every_steps."""
    at_steps: tuple[int, ...] = ()
    """Also score after these numbers of steps, such as a budget's doublings."""
    at: tuple[str, ...] = ()
    """The same as lengths, such as ["1e9 tokens", "2e9 tokens"], rounded to whole steps; instead of at_steps."""
    suites: tuple[str, ...] = ()
    """Suites and tasks of lm-evaluation-harness, scored whenever the tasks are: [new=|old=]NAME[:SHOTS][@EXAMPLES], such as
    "forgetting@200" for the first 200 examples of each of its tasks."""
    final_suites: tuple[str, ...] = ()
    """Suites and tasks scored before training (with at_start) and at its end only, such as "forgetting", "learning-code"."""
    data_dir: Path | None = None
    """Folder with the data sets of suites, for clusters without internet; None = the hub and its cache."""
    max_new_tokens: int | None = None
    """Longest answer that a suite's task may write, in tokens; None = as the task says."""
    code_isolation: Literal["required", "none"] = "required"
    """required: programs that a model wrote run in a sandbox, or not at all. none: they run with your rights; they can
    delete your files."""
    batch_tokens: int = 8192
    """Tokens per forward on each rank, padding included. Changes speed and memory, not scores."""
    posterior_samples: int = 0
    """Also predict with the average over this many draws of the adapter's weights from its posterior (monteclora); 0 =
    the posterior mean only. With k draws an evaluation takes k + 1 times as long."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, message) for every value that cannot work; a task's fields are named tasks.<name>.<field>."""
        if self.every_steps < 0:
            yield "every_steps", f"{self.every_steps} is negative; use 0 for first and last only, or a number of steps"
        if any(step < 1 for step in self.at_steps):
            yield "at_steps", f"{list(self.at_steps)} has steps before the first; at_start scores the model as loaded"
        if self.batch_tokens < 1:
            yield "batch_tokens", f"{self.batch_tokens} tokens per forward cannot score anything; use 1 or more"
        if self.posterior_samples < 0:
            yield (
                "posterior_samples",
                f"{self.posterior_samples} is negative; use 0 for the posterior mean only, or a number of draws",
            )
        if self.code_isolation not in ("required", "none"):
            yield "code_isolation", f"{self.code_isolation!r} is not a choice; use required, or none"
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            yield "max_new_tokens", f"{self.max_new_tokens} is too small; use 1 or more, or leave it out"
        yield from self._suite_problems()
        yield from _looked_at("data_dir", self._data_dir_problems())
        for name, task in self.tasks.items():
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                yield f"tasks.{name}", f"{name!r} cannot be a task's name; use letters, digits, _ and -"
            for field_name, message in task.problems():
                yield f"tasks.{name}.{field_name}", message

    def specs(self, *, is_end: bool) -> list[TaskSpec]:
        """What is scored by the referee: `suites`, and at the start and the end of a run `final_suites`, too.

        Raises:
            EvalError: some are not written as suites are, or are named twice.
        """
        return parse_specs(list(dict.fromkeys([*self.suites, *(self.final_suites if is_end else ())])))

    def _data_dir_problems(self) -> Iterator[tuple[str, str]]:
        if self.data_dir is None:
            return
        if not self.data_dir.is_dir():
            yield (
                "data_dir",
                f"there is no folder {self.data_dir}; give the one with the suites' data sets, or leave it out",
            )
        else:
            os.scandir(self.data_dir).close()

    def _suite_problems(self) -> Iterator[tuple[str, str]]:
        field_name = "suites"
        try:
            self.specs(is_end=False)
            field_name = "final_suites"
            specs = self.specs(is_end=True)
        except EvalError as error:
            yield field_name, str(error)
            return
        for spec in specs:
            if spec.name in self.tasks:
                yield f"tasks.{spec.name}", "is the name of a task of the suites, too; give it another one"

    def metrics(self) -> dict[str, str | None]:
        """What is measured on the way, and by which metric; None for a task of an unknown kind."""
        of_suites: dict[str, str | None] = {spec.name: "accuracy" for spec in self.specs(is_end=False)}
        return {name: metric_of(task.kind) for name, task in self.tasks.items()} | of_suites

    def seq_len_problems(self, seq_len: int) -> Iterator[tuple[str, str]]:
        """Yield (field, message) for every task whose rows do not fit into a model input of `seq_len` tokens."""
        for name, task in self.tasks.items():
            if task.kind == "continuation_choice" and not choice_fits(task, seq_len):
                yield (
                    f"tasks.{name}.context_tokens",
                    (
                        f"{task.context_tokens} context tokens and {task.continuation_tokens} continuation tokens "
                        f"do not fit into rows of {seq_len} tokens; lower them to {seq_len} together"
                    ),
                )


def _looked_at(name: str, problems: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield problems that are found by looking at paths; that one of them can't be looked at is a problem of the field `name`."""
    try:
        yield from problems
    except OSError as error:
        yield name, f"{error.filename} can't be looked at: {error.strerror}"


def choice_fits(task: TaskConfig, seq_len: int) -> bool:
    """Whether beginning-of-text, context and continuation fit; the last token is predicted but never read."""
    return task.context_tokens + task.continuation_tokens <= seq_len


def metric_of(kind: str) -> str | None:
    """What a task of this kind measures; None: there is no such kind."""
    if kind not in get_args(Kind):
        return None
    metric: str = import_module(f"evals.held_out.{kind}").METRIC
    return metric
