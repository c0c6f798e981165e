"""Judging many programs: in parallel, each distinct program once, and only those that have no verdict yet."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from queue import SimpleQueue

from evals.code.policy import Policy
from evals.code.program import Program, Verdict
from evals.code.sandbox import Sandbox, no_process
from evals.errors import EvalError


def judge(
    programs: Sequence[Program],
    *,
    policy: Policy,
    workers: int | None = None,
    known: Mapping[str, Verdict] | None = None,
    finished: Callable[[Program, Verdict], None] | None = None,
) -> list[Verdict]:
    """The verdicts on all programs, in their order.

    Args:
        programs: what to judge.
        policy: limits on each program.
        workers: programs that run at the same time; by default the number of cores, at most 8.
        known: verdicts from before by `Program.key(policy)`; these programs are not run again.
        finished: called in the calling thread for each program that was run, as it finishes; identical programs once.

    Raises:
        EvalError: programs cannot be isolated here (see `evals.code.sandbox.check`), or no process can be started.
    """
    keys = [program.key(policy) for program in programs]
    verdicts = dict(known or {})
    waiting = {key: program for key, program in zip(keys, programs, strict=True) if key not in verdicts}
    workers = min(workers or min(len(os.sched_getaffinity(0)), 8), len(waiting))
    if not waiting:
        return [verdicts[key] for key in keys]
    with ExitStack() as stack:
        sandboxes = [stack.enter_context(Sandbox(policy)) for _ in range(workers)]
        free: SimpleQueue[Sandbox] = SimpleQueue()
        pool = ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, cancel_futures=True)
        for sandbox in sandboxes:
            free.put(sandbox)
        try:
            futures = {pool.submit(_run, free, program): key for key, program in waiting.items()}
        except RuntimeError as error:  # no thread can be started
            raise EvalError(no_process(str(error))) from None
        try:
            for future in as_completed(futures):
                key = futures[future]
                verdicts[key] = future.result()
                if finished is not None:
                    finished(waiting[key], verdicts[key])
        except BaseException:
            # Do not wait for programs that still run.
            for sandbox in sandboxes:
                sandbox.end()
            raise
    return [verdicts[key] for key in keys]


def _run(free: SimpleQueue[Sandbox], program: Program) -> Verdict:
    sandbox = free.get()
    try:
        return sandbox.run(program)
    finally:
        free.put(sandbox)
