"""Evaluation: how much a run learned, how much it forgot, and the report that shows it.

Nothing here imports deepspeed, and the names below are loaded on first use, so that `import evals.config`
and `python -m evals collect` stay light (no torch).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "EvalConfig": "config",
    "EvalError": "errors",
    "TaskConfig": "config",
    "build_report": "report.summary",
    "check_tasks": "held_out.evaluate",
    "evaluate": "held_out.evaluate",
    "find_runs": "results",
    "load_run": "results",
    "summary_table": "report.write",
    "write_report": "report.write",
    "write_result": "results",
}

__all__ = [
    "EvalConfig",
    "EvalError",
    "TaskConfig",
    "build_report",
    "check_tasks",
    "evaluate",
    "find_runs",
    "load_run",
    "summary_table",
    "write_report",
    "write_result",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'evals' has no attribute {name!r}")
    return getattr(import_module(f"evals.{_MODULE_OF[name]}"), name)
