"""Processes that try some inputs each, forked from one that has imported everything: a crash ends no more than one of them."""

from __future__ import annotations

import faulthandler
import hashlib
import json
import logging
import multiprocessing
import os
import re
import shutil
from pathlib import Path
from typing import Any

from tests.fuzz.folders import put
from tests.fuzz.fuzzing import fuzz, try_valid
from tests.fuzz.target import PACKAGES, Target
from tests.fuzz.targets import MODULES, module_of, targets

SILENCE = 60.0
"""Seconds after which a process that has not come to its next input is ended: it waits for something, or a library loops."""
ROOT = Path(__file__).resolve().parents[2]
FORKED = multiprocessing.get_context("forkserver")


def begin() -> None:
    """Say what the process that is forked from begins with; before the first piece."""
    FORKED.set_forkserver_preload([__name__, *(f"tests.fuzz.targets.{module}" for module in MODULES)])
    # Else every thread has an arena of its own, which counts as memory of the reader.
    os.environ |= {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


def run_piece(target: Target, count: int, start: int, work: Path) -> dict[str, Any]:
    """What a process that tried `count` inputs found; of one that ended in another way only the last input counts."""
    process = FORKED.Process(target=_piece, args=(target.name, module_of(target), count, start, work))
    process.start()
    process.join()
    if (work / "result.json").exists():
        found: dict[str, Any] = json.loads((work / "result.json").read_bytes())
        return found
    name = f"crashed-{start}"
    text = (work / "stacks").read_text()
    if not (work / "now").exists():
        raise RuntimeError(
            f"the process that tries {target.name} ended with {process.exitcode} before the first input: {text}"
        )
    shutil.copytree(work / "now", work / "failed" / name, symlinks=True)
    has_waited = text.startswith("Timeout")
    kind = f"nothing came of it in {SILENCE:g} s" if has_waited else f"its process ended with {process.exitcode}"
    failure = {"name": name, "kind": f"{kind}, in {place(text)}", "text": text[:4000]}
    return {"inputs": 1, "seconds": 0.0, "results": {"crashed": 1}, "failures": [failure]}


def place(stacks: str) -> str:
    """The function of ours that a process was in; "unknown" where that is in no stack."""
    found = re.search(rf'File "{re.escape(str(ROOT))}/((?:{"|".join(PACKAGES)})/[^"]+)", line \d+ in (\S+)', stacks)
    return f"{found[1]}:{found[2]}" if found else "unknown"


def _piece(name: str, module: str, count: int, start: int, work: Path) -> None:
    """Try some inputs in this process; what came of them is in `work`/result.json."""
    logging.disable(logging.CRITICAL)
    # A crash, or an input that never ends: nothing but the stacks is left of the process, and the input where it was tried.
    with (work / "stacks").open("w") as stacks:
        faulthandler.enable(stacks)
        (target,) = (target for target in targets([module]) if target.name == name)

        def begin_input() -> None:
            faulthandler.dump_traceback_later(SILENCE, exit=True, file=stacks)

        begin_input()
        try_valid(target, work)
        tally = fuzz(target, count, start=start, work=work, before_each=begin_input)
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()
    failures = []
    for failure in tally.failures.values():
        digest = hashlib.sha256(failure.kind.encode()).hexdigest()[:12]
        put(failure.files, work / "failed" / digest)
        failures.append({"name": digest, "kind": failure.kind, "text": failure.text})
    result = {"inputs": tally.inputs, "seconds": tally.seconds, "results": tally.results, "failures": failures}
    (work / "result.json").write_text(json.dumps(result))
