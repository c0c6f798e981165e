"""Running programs that nobody has read: without network, files of the user, or a way to outlive their verdict.

Each program runs in processes of its own (`evals.code.keeper`), isolated by Linux user, mount, process, network, IPC and
host name namespaces, the one mechanism of isolation (no container program or helper with root's rights is used, so user
namespaces must be allowed, and without them nothing runs): it sees Python's standard library read-only, an empty scratch directory, five harmless devices, and
itself. It has no capabilities and no real user's files, a short list of environment variables, a filter of system calls,
and the limits of its `Policy`. Why a verdict cannot be faked: `evals.code.examiner`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from evals.code import exchange
from evals.code.policy import Policy
from evals.code.program import Program, Verdict
from evals.errors import EvalError

_ROOT = Path(__file__).parents[2]
_START = "import sys; sys.path.append(sys.argv[1]); from evals.code import keeper; keeper.main(*sys.argv[2:])"
_PATIENCE_SECONDS = 2.0
_TRIAL = Program(id="trial", sample=0, source="def one():\n    return 1\n", test="assert one() == 1", entry_point="one")


class Sandbox:
    """A helper process that runs one program at a time. For one thread; close it, or use it in a `with` statement.

    Attributes:
        refusal: why programs run without isolation; empty where they are isolated.

    Raises:
        EvalError: programs cannot be isolated here, and `policy.allow_unisolated` is off; or no process can be started.
    """

    def __init__(self, policy: Policy) -> None:
        self._process = _start(policy, isolate="yes")
        self.refusal = ""
        try:
            started = self._receive()
            self.refusal = started["refusal"]
            if started.get("is_shortage"):
                raise EvalError(no_process(self.refusal))
            if self.refusal and not policy.allow_unisolated:
                raise EvalError(_refused(self.refusal))
            if self.refusal:
                self.close()
                self._process = _start(policy, isolate="no")
                self._receive()
        except BaseException:
            self.close()
            raise

    def run(self, program: Program) -> Verdict:
        """The verdict on one program.

        Raises:
            EvalError: the helper process is gone, or can start no process or isolate none.
        """
        assert self._process.stdin is not None
        request = {"source": program.source, "test": program.test, "entry_point": program.entry_point}
        try:
            exchange.send(self._process.stdin.fileno(), json.dumps(request).encode())
        except BrokenPipeError:
            raise EvalError("the sandbox's helper process ended; was it killed? Run the evaluation again") from None
        answer = self._receive()
        if "broken" in answer:
            raise EvalError((no_process if answer.get("is_shortage") else _refused)(answer["broken"]))
        return Verdict(**answer)

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        message = exchange.receive(self._process.stdout.fileno())
        if message is None:
            raise EvalError("the sandbox's helper process ended; was it killed? Run the evaluation again")
        return json.loads(message)

    def end(self) -> None:
        """End the helper process, and with it all that runs inside; `run` in another thread raises."""
        self._process.kill()

    def close(self) -> None:
        """Let the helper process end; end it if it is busy."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.end()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _start(policy: Policy, *, isolate: str) -> subprocess.Popen[bytes]:
    settings = json.dumps(asdict(policy))
    try:
        return subprocess.Popen(
            [sys.executable, "-s", "-S", "-P", "-c", _START, str(_ROOT), settings, isolate],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"},
            start_new_session=True,
        )
    except OSError as error:
        raise EvalError(no_process(str(error))) from None


def no_process(problem: str) -> str:
    """What to tell the user when a process or thread for judging cannot be started."""
    return (
        f"no process to judge programs in can be started ({problem}); memory, or processes and open files that the user "
        "may have (ulimit -u, ulimit -n, the container's limits), are used up. Free some, or judge on another machine"
    )


def _refused(step: str) -> str:
    return (
        f"programs that a model wrote cannot be isolated on this machine ({step}), so they are not run. Allow user "
        "namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
        "kernel.apparmor_restrict_unprivileged_userns; in a container, the capability SYS_ADMIN or a seccomp profile "
        "that permits unshare), judge on another machine, or set allow_unisolated to run them with your own rights: "
        "they could then read and change your files"
    )


def run(program: Program, policy: Policy) -> Verdict:
    """The verdict on one program, in a sandbox of its own.

    Raises:
        EvalError: see `Sandbox`.
    """
    with Sandbox(policy) as sandbox:
        return sandbox.run(program)


def check(policy: Policy) -> str:
    """Try the isolation once.

    Returns:
        Nothing to say (empty), or, where `policy.allow_unisolated` is on and isolation fails, why programs will run with
        the user's own rights.

    Raises:
        EvalError: programs cannot be isolated on this machine, and `policy.allow_unisolated` is off; no process can be
            started; or the limits are too low for any program.
    """
    with Sandbox(policy) as sandbox:
        verdict = sandbox.run(_TRIAL)
        if not verdict.passed:
            raise EvalError(
                f"a trial program that is right got the verdict {verdict.reason!r} ({verdict.detail}), so no verdict would "
                f"mean anything; raise the limits: {policy}"
            )
        return f"programs run without isolation: {sandbox.refusal}" if sandbox.refusal else ""
