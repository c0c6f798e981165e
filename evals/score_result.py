"""The scores of a request: those that the run has at the step already, and where new ones go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evals.errors import EvalError
from evals.results import SCHEMA, load_run, read_result, result_file, write_json
from evals.score_request import Request


def known_scores(request: Request) -> dict[str, Any]:
    """The run's entries at the step, so far; empty without a run.

    Raises:
        EvalError: it is no run, or none of its files of that step can be used.
    """
    if request.run is None or request.step is None:
        return {}
    if not (Path(request.run) / "run.json").is_file():
        raise EvalError(f"{request.run}: no run.json there; give a run's folder with --run")
    run = load_run(request.run)
    return dict(run.result(request.step)["tasks"]) if request.step in run.eval_steps else {}


def refuse_other_weights(request: Request, identity: str) -> None:
    """Keep the scores of different weights out of one file.

    Raises:
        EvalError: the file that the request writes to holds scores of a model with another identity.
    """
    before = _before(request)
    if before.get("identity", identity) != identity:
        raise EvalError(
            f"{_file(request)}: holds scores of {before.get('model')}, whose weights are not those of {request.model}; give "
            f"the model of step {request.step}, or remove the file to score anew"
        )


def write_scores(request: Request, tasks: Mapping[str, Any], *, identity: str, seconds: float) -> None:
    """Write entries where the request says, with what was scored: the model's folder and its `ModelFolder.identity`."""
    content = {
        "schema": SCHEMA,
        "step": request.step or 0,
        "seconds": seconds,
        "model": str(request.model),
        "identity": identity,
    }
    if (path := _file(request)) is not None:
        # A file of this name holds what an earlier start of the same request has scored.
        write_json(path, {**content, "tasks": {**_before(request).get("tasks", {}), **tasks}})
    if request.out is not None:
        write_json(Path(request.out), {**content, "tasks": tasks})


def _file(request: Request) -> Path | None:
    if request.run is None or request.step is None:
        return None
    return result_file(request.run, request.step, request.name)


def _before(request: Request) -> dict[str, Any]:
    path = _file(request)
    return read_result(path) if path is not None and path.is_file() else {}
