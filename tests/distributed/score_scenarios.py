"""A folder scored by real ranks of which one cannot go on; see test_score_folder.py."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any
from unittest import mock

from evals import score_folder as scoring
from evals.agreement import CommonError
from evals.errors import EvalError
from evals.harness.specs import parse_specs
from evals.score_request import Request


def score(model: str, data: str, run: str, ports: list[int]) -> dict[str, Any]:
    """Score with nothing wrong, and then with one thing wrong on the second rank; what this rank was told or returned.

    Processes score once and end; these do it several times, each time by a port of its own, because the store of the time
    before may still be open when the next one is looked for.
    """
    rank = int(os.environ["RANK"])
    unused = iter(ports)
    request = Request(
        model=Path(model), suites=parse_specs(["winogrande"]), data_dir=Path(data), device="cpu", run=Path(run), step=3
    )

    def score_folder(request: Request) -> dict[str, dict[str, Any]]:
        os.environ["MASTER_PORT"] = str(next(unused))
        return scoring.score_folder(request)

    def told(name: str, error: Exception) -> str:
        own = getattr(scoring, name)

        def failing(*arguments: Any, **settings: Any) -> Any:
            if rank == 1:
                raise error
            return own(*arguments, **settings)

        try:
            with mock.patch.object(scoring, name, failing):
                score_folder(request)
        except CommonError as common:
            return str(common)
        return "no error"

    # Files that appear while the second rank starts must not make it skip what the first one scores.
    own = scoring.known_scores
    with mock.patch.object(scoring, "known_scores", lambda each: {"winogrande": {}} if rank == 1 else own(each)):
        found = score_folder(request)
    again = score_folder(request)
    request = dataclasses.replace(request, step=4)
    return {
        "n": found["winogrande"]["n"],
        "is_known": again == {"winogrande": found["winogrande"]},
        "tokenizer": told("_tokenizer", EvalError("no tokenizer on this node")),
        "checks": told("_checked", EvalError("no data on this node")),
        "model": told("load_model", RuntimeError("out of memory")),
    }
