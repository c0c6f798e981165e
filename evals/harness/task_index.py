"""Which of the harness's task configurations a specification names: a task, the tasks of a group or tag, a task file."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.errors import EvalError
from evals.harness.specs import TaskSpec
from evals.harness.suites import SUITES, TASKS

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

FOLDERS = {
    "hellaswag": "hellaswag",
    "arc_challenge": "arc",
    "arc_easy": "arc",
    "winogrande": "winogrande",
    "humaneval": "humaneval",
    "humaneval_instruct": "humaneval",
    "gsm8k": "gsm8k",
    "boolq": "super_glue/boolq",
    "piqa": "piqa",
    "social_iqa": "siqa",
    "openbookqa": "openbookqa",
}
"""The harness's folders of the suites' tasks: reading these instead of all 14,000 task files saves seconds."""

SOURCE = "palimpsest_source"
"""Key under which a configuration carries its file, from which functions are resolved when it is loaded."""


def members(spec: TaskSpec) -> list[tuple[TaskSpec, dict[str, Any]]]:
    """The tasks that a specification names, each with its configuration, functions unresolved.

    Raises:
        EvalError: no task has this name, with those that are close to it; or the file is no task file.
    """
    name = spec.task.name
    if spec.is_file:
        return [(spec, _file_config(Path(name)))]
    index = manager(FOLDERS.get(name)).task_index
    if name not in index:
        close = difflib.get_close_matches(name, sorted({*SUITES, *TASKS, *index}), n=4, cutoff=0.6)
        hint = f"did you mean {', '.join(close)}?" if close else f"suites are {', '.join(SUITES)}"
        raise EvalError(f"{name}: no suite, task or task file of this name; {hint}")
    leaves = list(_leaves(name, {}, index))
    if leaves[0][0] == name:
        return [(spec, leaves[0][1])]
    suffix = spec.name.removeprefix(name)
    return [
        (
            dataclasses.replace(
                spec,
                name=leaf + suffix,
                suite=name,
                task=dataclasses.replace(TASKS.get(leaf, spec.task), name=leaf),
            ),
            config,
        )
        for leaf, config in dict(leaves).items()
    ]


def _leaves(name: str, overrides: Mapping[str, Any], index: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, configuration) of every task under a name of the index, with what groups say about their members."""
    entry = index[name]
    if entry.kind.name == "TAG":
        for tagged in sorted(entry.tags):
            yield from _leaves(tagged, overrides, index)
    elif entry.kind.name == "GROUP":
        yield from _group_leaves(entry.cfg, overrides, index)
    else:
        yield name, {**entry.cfg, **overrides, "task": name, SOURCE: entry.yaml_path}


def _group_leaves(
    group: Mapping[str, Any], overrides: Mapping[str, Any], index: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    from lm_eval.tasks._factory import GROUP_FIELD_NAMES

    inherited = {**{key: value for key, value in group.items() if key not in GROUP_FIELD_NAMES}, **overrides}
    for member in group.get("task") or []:
        if isinstance(member, str):
            yield from _leaves(member, inherited, index)
        elif member.get("group") in index:
            yield from _leaves(member["group"], {**inherited, **without(member, "group")}, index)
        elif "group" in member:
            yield from _group_leaves(member, inherited, index)
        elif member["task"] in index:
            yield from _leaves(member["task"], {**inherited, **without(member, "task")}, index)
        else:
            yield member["task"], {**inherited, **member}


def _file_config(path: Path) -> dict[str, Any]:
    """A task file's configuration; EvalError when it is not one."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if not path.is_file():
        raise EvalError(f"{path}: no such task file; check the path")
    try:
        config = load_yaml(path, resolve_func=False)
    except Exception as error:  # YAML's errors, and those of included files
        raise EvalError(f"{path}: not a task file ({first_line(error)})") from error
    if not isinstance(config.get("task"), str):
        raise EvalError(f"{path}: no single task in this file; give it `task: NAME` and the fields of lm-eval's tasks")
    return {**config, SOURCE: path}


@functools.cache
def manager(folder: str | None) -> TaskManager:
    """The harness's index of tasks: of one of its folders, or of all."""
    import lm_eval.tasks

    if folder is None:
        return lm_eval.tasks.TaskManager()
    return lm_eval.tasks.TaskManager(include_path=Path(lm_eval.tasks.__file__).parent / folder, include_defaults=False)


def without(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The mapping without one of its keys."""
    return {name: value for name, value in mapping.items() if name != key}


def first_line(error: Exception) -> str:
    """An error's message, without what follows its first line."""
    return (str(error).strip().splitlines() or ["no details"])[0]
