"""The scores of a request: those that the run has at the step already, and where new ones go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evals.errors import EvalError
from evals.outputs import check_place
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
    last = run.get("step")
    if request.step < 0 or (isinstance(last, int) and request.step > last):
        raise EvalError(
            f"{request.run}: has had {'no' if last is None else last} steps so far, so none of its checkpoints is of step "
            f"{request.step}; give the step that the model is of, 0 for the base"
        )
    return dict(run.result(request.step)["tasks"]) if request.step in run.eval_steps else {}


def check_files(request: Request, identity: str) -> None:
    """Make sure of the files that the request writes to, and keep the scores of different weights out of one file.

    Raises:
        EvalError: one can't be written, or holds scores of a model with another identity.
    """
    for path in _files(request):
        check_place(path)
        before = _before(path)
        if before.get("identity", identity) != identity:
            raise EvalError(
                f"{path}: holds scores of {before.get('model')}, whose weights are not those of {request.model}; give the "
                "model of that file, another place for the scores, or remove the file to score anew"
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
    for path in _files(request):
        # It may hold what another request has scored of the same weights.
        write_json(path, {**content, "tasks": {**_before(path).get("tasks", {}), **tasks}})


def _files(request: Request) -> list[Path]:
    """Where scores go."""
    of_run = request.run is not None and request.step is not None
    files = [result_file(request.run, request.step, request.name)] if of_run else []  # type: ignore[arg-type]
    return [*files, *([Path(request.out)] if request.out is not None else [])]


def _before(path: Path) -> dict[str, Any]:
    return read_result(path) if path.is_file() else {}
