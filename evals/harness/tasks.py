"""The harness's task objects for specifications: found by name, with data from the hub or from a local folder.

A task is the official one (prompts, targets, choices, document processing, metrics, filters, version); only where its
records come from is replaced. Programs that models write are never run here: of a HumanEval-like task only the prompts
are taken, and evals.code judges.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.errors import EvalError
from evals.harness.generation_settings import generation_settings, without_lengths
from evals.harness.local_data import find_split, load_split, missing_message
from evals.harness.specs import TaskSpec
from evals.harness.task_index import SOURCE, first_line, manager, members, without

if TYPE_CHECKING:
    from lm_eval.api.task import Task

PROGRAM_FIELDS = ("prompt", "test", "entry_point")
"""Fields of a record whose answer is a program that evals.code can judge."""


@dataclass(frozen=True, kw_only=True)
class LoadedTask:
    """A task that is ready to be asked."""

    spec: TaskSpec
    task: Task
    """The harness's task object, with its records."""
    is_code: bool = False
    """Whether answers are programs, which evals.code judges."""
    is_fenced: bool = False
    """Whether a program ends where its markdown code block does (the harness's *_instruct tasks)."""

    @property
    def shots(self) -> int:
        """Solved examples in each prompt."""
        return int(self.task.config.num_fewshot or 0)


def load_tasks(
    specs: Sequence[TaskSpec],
    *,
    data_dir: Path | None = None,
    max_length: int | None = None,
    max_new_tokens: int | None = None,
) -> list[LoadedTask]:
    """Load every task; groups and tags of the harness (e.g. mmlu) become their tasks.

    Args:
        specs: what to evaluate.
        data_dir: folder with the data sets, see evals.harness.local_data; None = the hub.
        max_length: tokens in the model's longest input, if it is known.
        max_new_tokens: answers are no longer than this, whatever a task says; None = as the tasks say.

    Raises:
        EvalError: tasks that are unknown, cannot be judged here, whose data is not there, or whose answers are as long as
            the model's longest input; all of them are listed.
    """
    loaded: dict[str, LoadedTask] = {}
    problems: list[str] = []
    if data_dir is not None and not Path(data_dir).is_dir():
        raise EvalError(f"{data_dir}: no such folder; give the folder that holds the data sets")
    with quiet():
        for spec in specs:
            try:
                found = members(spec)
            except EvalError as error:
                problems.append(str(error))
                continue
            for member, config in found:
                try:
                    if member.name in loaded:
                        raise EvalError(f"{member.name} is named twice; name it once")
                    task = _load(member, config, None if data_dir is None else Path(data_dir), max_new_tokens)
                    if max_length is not None:
                        _check_length(task, max_length)
                    loaded[member.name] = task
                except EvalError as error:
                    problems.append(str(error))
    if problems:
        raise EvalError("\n  ".join(["these tasks cannot be evaluated:", *dict.fromkeys(problems)]))
    return list(loaded.values())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the harness's and datasets' remarks and progress bars, which are about nothing that users decide."""
    import datasets

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    has_bars = datasets.utils.are_progress_bars_disabled() is False
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    datasets.utils.disable_progress_bars()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if has_bars:
            datasets.utils.enable_progress_bars()


@contextlib.contextmanager
def compiled_templates() -> Iterator[None]:
    """While it lasts, the harness compiles each prompt template once, not again for each example."""
    from lm_eval.utils import env

    compile_template = env.from_string
    env.from_string = functools.lru_cache(maxsize=256)(compile_template)
    try:
        yield
    finally:
        env.from_string = compile_template


def _load(spec: TaskSpec, config: dict[str, Any], data_dir: Path | None, max_new_tokens: int | None) -> LoadedTask:
    source = config.pop(SOURCE, None)
    is_code = bool(config.get("unsafe_code"))
    is_fenced = False
    if is_code:
        answers = str(config.get("filter_list"))
        if "build_predictions" not in answers:
            raise EvalError(
                f"{spec.name}: its answers are programs, and only tasks with the fields {', '.join(PROGRAM_FIELDS)} "
                "(HumanEval's) can be judged here"
            )
        is_fenced = "build_predictions_instruct" in answers
        # The harness would load its own judge when these functions are resolved, and run programs unprotected.
        config = {**without(config, "filter_list"), "metric_list": [{"metric": "bypass"}]}
    elif source is not None:
        config = _resolved(spec.name, config, source)
    for key in ("tag", "group", "task_list"):
        config.pop(key, None)
    if spec.shots is not None:
        config["num_fewshot"] = spec.shots
    config.update(_sampling(spec, config, max_new_tokens))
    if data_dir is not None and not spec.is_file:
        config = _with_local_data(spec, config, data_dir)
    task = _build(spec, config, data_dir)
    if is_code and (lacking := [field for field in PROGRAM_FIELDS if field not in task.eval_docs.column_names]):
        raise EvalError(f"{spec.name}: its records lack {', '.join(lacking)}, without which programs cannot be judged")
    return LoadedTask(spec=spec, task=task, is_code=is_code, is_fenced=is_fenced)


def _sampling(spec: TaskSpec, config: Mapping[str, Any], max_new_tokens: int | None) -> dict[str, Any]:
    """What the specification says about how answers are written, as a task file would say it."""
    if config.get("output_type", "generate_until") != "generate_until":
        return {}
    kwargs = dict(config.get("generation_kwargs") or {})
    if spec.task.temperature is not None:
        kwargs |= {"temperature": spec.task.temperature, "do_sample": spec.task.temperature > 0}
    if spec.task.top_p is not None:
        kwargs["top_p"] = spec.task.top_p
    try:
        length = generation_settings(kwargs).max_new_tokens
    except EvalError as error:
        raise EvalError(f"{spec.name}: {error}") from error
    if max_new_tokens is not None and max_new_tokens < length:
        # What a task without settings does is said here, for then it has some.
        kwargs = {"until": [config.get("fewshot_delimiter", "\n\n")], **without_lengths(kwargs)}
        kwargs["max_gen_toks"] = max_new_tokens
    return {"generation_kwargs": kwargs or None, "repeats": spec.task.samples or config.get("repeats") or 1}


def _check_length(loaded: LoadedTask, max_length: int) -> None:
    if loaded.task.OUTPUT_TYPE != "generate_until":
        return
    length = generation_settings(loaded.task.config.generation_kwargs).max_new_tokens
    if length >= max_length:
        raise EvalError(
            f"{loaded.spec.name}: answers of up to {length} tokens leave no room for a prompt in the model's {max_length}; "
            f"lower max_new_tokens (--max-new-tokens) below {max_length}"
        )


def _resolved(name: str, config: dict[str, Any], source: Path) -> dict[str, Any]:
    """The configuration with its functions; what a group said of it stays."""
    from lm_eval.tasks._yaml_loader import load_yaml

    plain = load_yaml(source, resolve_func=False)
    try:
        whole = load_yaml(source)
    except Exception as error:  # a task's own Python may raise anything, e.g. for a package that is not installed
        raise EvalError(f"{name}: the functions of {source} cannot be loaded ({error})") from error
    return {**whole, **{key: value for key, value in config.items() if key not in plain or plain[key] != value}}


def _with_local_data(spec: TaskSpec, config: dict[str, Any], data_dir: Path) -> dict[str, Any]:
    """The configuration reading local files; splits that are neither scored nor shown may be absent."""
    if "class" in config:
        raise EvalError(
            f"{spec.name}: a task with a Python class of its own reads from the hub only; leave data_dir (--data) out"
        )
    shown = _shown_split(config)
    scored = config.get("test_split") or config.get("validation_split")
    if scored is None:
        raise EvalError(f"{spec.name}: the task names neither a test nor a validation split; nothing can be scored")
    splits = [scored, *([shown] if config.get("num_fewshot") and shown not in (None, scored) else [])]
    is_only_split = not any(config.get(key) not in (None, scored) for key in ("training_split", "validation_split"))
    paths = {split: find_split(data_dir, spec.task.name, split, is_only_split=is_only_split) for split in splits}
    if missing := [split for split, path in paths.items() if path is None]:
        source = "/".join(str(config[key]) for key in ("dataset_path", "dataset_name") if config.get(key))
        raise EvalError(missing_message(data_dir, spec.task.name, missing, source, is_only_split=is_only_split))
    present = {split: load_split(path) for split, path in paths.items() if path is not None}
    absent = {
        key: None
        for key in ("training_split", "validation_split", "test_split", "fewshot_split")
        if config.get(key) not in present
    }
    shots = {"fewshot_config": without(config["fewshot_config"], "split")} if config.get("fewshot_config") else {}
    if shots and config["fewshot_config"].get("split") in present:
        shots = {}
    return {**config, **absent, **shots, "custom_dataset": lambda **_: present, "dataset_kwargs": None}


def _shown_split(config: Mapping[str, Any]) -> str | None:
    """The split that solved examples come from, by the harness's rule; None when the task brings its own."""
    settings = config.get("fewshot_config") or {}
    named = settings.get("split") or config.get("fewshot_split")
    if named or settings.get("samples") is not None:
        return named
    return config.get("training_split") or config.get("validation_split") or config.get("test_split")


def _build(spec: TaskSpec, config: dict[str, Any], data_dir: Path | None) -> Task:
    from lm_eval.api.task import ConfigurableTask

    try:
        if "class" in config:
            task: Any = manager(None).load([spec.task.name])["tasks"][spec.task.name]
            if spec.shots is not None:
                task.set_config(key="num_fewshot", value=spec.shots)
        else:
            task = ConfigurableTask(config=config)
    except EvalError:
        raise
    except Exception as error:  # the hub's and datasets' errors have no class in common
        if data_dir is None and not spec.is_file:
            raise EvalError(
                f"{spec.name}: its data cannot be loaded from the hub ({type(error).__name__}: {first_line(error)}); "
                "download it where there is internet, and name its folder with data_dir (--data)"
            ) from error
        raise EvalError(
            f"{spec.name}: the task cannot be made ({type(error).__name__}: {first_line(error)})"
        ) from error
    if task.OUTPUT_TYPE not in ("loglikelihood", "multiple_choice", "loglikelihood_rolling", "generate_until"):
        raise EvalError(f"{spec.name}: output type {task.OUTPUT_TYPE!r} is not one that text models answer")
    if getattr(task, "MULTIMODAL", False):
        raise EvalError(f"{spec.name}: it shows images or sound, and only text is read here")
    return task
