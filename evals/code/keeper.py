"""The helper process that keeps an isolated place ready and runs one program after another in it.

It is a small Python process of its own, without the evaluation's memory, environment or open files. For each program it
forks an examiner into fresh namespaces (`evals.code.isolation`), which forks a candidate into one more; both wait for the
program, so that the next is ready when the last ends. Only the examiner reads programs and tests. The keeper watches time,
output and memory, and ends everything by ending the examiner, the first process of its namespace.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import selectors
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

from evals.code import candidate, examiner, exchange, isolation, privileges
from evals.code import system_calls as linux
from evals.code.policy import Policy

_WATCH_SECONDS = 0.05
_FILES = 256
"""More files than the keeper ever has open."""

_SHORTAGES = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""Errors of a machine that has no memory, processes or open files left, whatever it allows."""

_SCRATCH_FILES = 4
"""The scratch directory holds this many files of the largest size."""


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where programs run: isolated, or not."""

    policy: Policy
    is_isolated: bool
    proc: int


def main(settings: str, isolate: str) -> None:
    """Isolate this process, say so on standard output, and judge the programs that come on standard input.

    Args:
        settings: the fields of a Policy, as JSON.
        isolate: "yes", or "no" to run programs with this process's own rights.
    """
    policy = Policy(**json.loads(settings))
    place = _Place(policy=policy, is_isolated=isolate == "yes", proc=os.open("/proc", os.O_PATH | os.O_DIRECTORY))
    _preload()
    del sys.path[-1]
    os.environ.clear()
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    started: dict[str, Any] = {"refusal": ""}
    try:
        if place.is_isolated:
            isolation.enter()
    except OSError as error:
        started = {"refusal": error.strerror or str(error), "is_shortage": error.errno in _SHORTAGES}
    exchange.send(1, json.dumps(started).encode())
    if started["refusal"]:
        return
    while (verdict := _judge_next(place)) is not None:
        exchange.send(1, json.dumps(verdict).encode())
        if "broken" in verdict:
            return


def _preload() -> None:
    """Import what programs often import, once."""
    import bisect, collections, copy, datetime, decimal, fractions, functools, hashlib, heapq, itertools, math  # noqa: E401, F401, I001
    import operator, queue, random, re, statistics, string, typing, dataclasses, enum  # noqa: E401, F401


def _judge_next(place: _Place) -> dict[str, Any] | None:
    """The verdict on the next program on standard input; None if there is none.

    `broken` in place of a verdict says why no program can run here, `is_shortage` whether for want of memory or processes.
    """
    scratch = "" if place.is_isolated else tempfile.mkdtemp(prefix="scratch-")
    verdict_read, verdict_write = os.pipe()
    output_read, output_write = os.pipe()
    try:
        pid = linux.fork_into(isolation.NAMESPACES) if place.is_isolated else os.fork()
    except OSError as error:
        return _broken(error)
    if pid == 0:
        try:
            _be_examiner(place, scratch, verdict_write, output_write)
        finally:
            os._exit(0)
    os.close(verdict_write)
    os.close(output_write)
    try:
        return _watch(place, pid, verdict_read, output_read)
    finally:
        os.close(verdict_read)
        os.close(output_read)
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def _broken(error: BaseException) -> dict[str, Any]:
    is_shortage = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _SHORTAGES)
    return {"broken": repr(error), "is_shortage": is_shortage}


def _be_examiner(place: _Place, scratch: str, verdict: int, output: int) -> None:
    """Fork the candidate, give up all powers, then read a program and judge it."""
    # A signal to one's own process group would otherwise reach the keeper, in whatever namespace it is.
    os.setsid()
    verdicts = verdict
    try:
        pid, files = _fork_candidate(place, scratch, output)
        # From here on the old numbers are other files.
        programs, verdicts, questions, answers = _keep_open(
            os.open("/dev/null", os.O_RDONLY), output, [0, verdict, *files]
        )
        _renounce(place)
        privileges.hide_memory()
    except BaseException as error:
        exchange.send(verdicts, json.dumps(_broken(error)).encode())
        return
    request = exchange.receive(programs)
    if request is not None:
        exchange.send(verdicts, b"started")
        result = examiner.examine(pid, questions, answers, json.loads(request), place.policy.cpu_seconds)
        exchange.send(verdicts, json.dumps(result).encode())


def _fork_candidate(place: _Place, scratch: str, output: int) -> tuple[int, list[int]]:
    """The candidate's process id, and the pipes to it and from it."""
    if place.is_isolated:
        isolation.mount_scratch(_SCRATCH_FILES * place.policy.file_bytes)
        linux.unshare(linux.CLONE_NEWPID, "a process namespace")
    else:
        os.chdir(scratch)
    os.environ.update(HOME=os.getcwd(), TMPDIR=os.getcwd(), PATH="/usr/bin:/bin", LANG="C.UTF-8")
    questions_read, questions_write = os.pipe()
    answers_read, answers_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if place.is_isolated:
                os.setsid()
            questions, answers = _keep_open(os.open("/dev/null", os.O_RDONLY), output, [questions_read, answers_write])
            _renounce(place)
            candidate.serve(questions, answers)
        finally:
            os._exit(1)
    return pid, [questions_write, answers_read]


def _renounce(place: _Place) -> None:
    privileges.set_limits(place.policy)
    if place.is_isolated:
        privileges.give_up()
    privileges.die_with_parent()


def _keep_open(standard_input: int, output: int, others: list[int]) -> list[int]:
    """Close all files but standard input and output and some others, which are moved to the numbers from 3 on."""
    highest = [os.dup(fd) for fd in (standard_input, output, *others)]
    base = max(highest) + 1
    spare = [os.dup2(fd, base + place, inheritable=False) for place, fd in enumerate(highest)]
    for target, fd in zip((0, 1, *range(3, 3 + len(others))), spare, strict=True):
        os.dup2(fd, target)
    os.dup2(1, 2)
    os.closerange(3 + len(others), _FILES)
    return list(range(3, 3 + len(others)))


def _watch(place: _Place, pid: int, verdict: int, output: int) -> dict[str, Any] | None:
    """Wait for the examiner's verdict, or for a limit; then end all processes."""
    policy, started, looked, written = place.policy, 0.0, 0.0, 0
    result: dict[str, Any] | None = None
    with selectors.DefaultSelector() as selector:
        selector.register(verdict, selectors.EVENT_READ)
        selector.register(output, selectors.EVENT_READ)
        while result is None:
            ready = {key.fd for key, _ in selector.select(_WATCH_SECONDS if started else None)}
            if output in ready:
                piece = os.read(output, 65536)
                written += len(piece)
                if not piece:
                    selector.unregister(output)
            if verdict in ready:
                message = exchange.receive(verdict)
                if message == b"started":
                    started = time.monotonic()
                    continue
                if message is None and not started:
                    break
                result = json.loads(message) if message is not None else {}
            elif started and time.monotonic() - started > policy.wall_seconds:
                result = _failed("timed out", f"{policy.wall_seconds:g} s")
            elif written > policy.output_bytes:
                result = _failed("too much output", f"{policy.output_bytes} bytes")
            elif started and time.monotonic() - max(started, looked) > _WATCH_SECONDS:
                size, looked = resident(place.proc, pid), time.monotonic()
                if size > policy.memory_bytes:
                    result = _failed("out of memory", f"{size} bytes in all processes")
    if place.is_isolated:
        os.kill(pid, signal.SIGKILL)
    else:
        os.killpg(pid, signal.SIGKILL)
    if result == {}:
        result = _failed(*examiner.how_it_ended(pid, policy.cpu_seconds))
    else:
        os.waitpid(pid, 0)
    return None if result is None else {**result, "seconds": time.monotonic() - started}


def _failed(reason: str, detail: str) -> dict[str, Any]:
    return {"passed": False, "reason": reason, "detail": detail}


def resident(proc: int, pid: int) -> int:
    """Resident bytes of a process and its descendants; memory that several share is counted for each.

    Args:
        proc: the /proc directory, opened before it was out of sight.
        pid: the process.
    """
    pages, size = 0, 0
    for task in _tasks(proc, pid):
        # A thread may end meanwhile; the others still count. A first thread that has ended shows no memory, others do.
        with contextlib.suppress(OSError):
            pages = max(pages, int(_read(proc, f"{pid}/task/{task}/statm").split()[1]))
        with contextlib.suppress(OSError):
            size += sum(resident(proc, int(child)) for child in _read(proc, f"{pid}/task/{task}/children").split())
    return size + pages * os.sysconf("SC_PAGE_SIZE")


def _tasks(proc: int, pid: int) -> list[str]:
    """The threads of a process; none if it has ended."""
    try:
        folder = os.open(f"{pid}/task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=proc)
    except OSError:
        return []
    try:
        return os.listdir(folder)
    except OSError:
        return []
    finally:
        os.close(folder)


def _read(proc: int, path: str) -> str:
    fd = os.open(path, os.O_RDONLY, dir_fd=proc)
    try:
        return os.read(fd, 65536).decode()
    finally:
        os.close(fd)
