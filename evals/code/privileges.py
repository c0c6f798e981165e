"""Giving up every power, and setting the limits: the last steps before code that nobody trusts."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal

from evals.code import call_filter
from evals.code import system_calls as linux
from evals.code.isolation import NOBODY
from evals.code.policy import Policy

_OWN_PROCESSES = 2
"""A program's limit on processes also counts, for a user who is not root, those that watch it."""


def set_limits(policy: Policy) -> None:
    """Limit this process and what it starts. Limits of the surroundings that are lower stay.

    Linux before 5.14 counts all of the user's processes, not only those of the sandbox, so that there a program may be
    able to start none.
    """
    seconds = math.ceil(policy.cpu_seconds)
    limits = {
        resource.RLIMIT_AS: policy.memory_bytes,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: policy.file_bytes,
        resource.RLIMIT_NOFILE: policy.open_files,
        resource.RLIMIT_NPROC: policy.processes + _OWN_PROCESSES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def give_up() -> None:
    """Become an ordinary user without capabilities, for good, and die with the parent process."""
    # Users who are not root cannot leave their groups; these own nothing that is visible.
    with contextlib.suppress(PermissionError):
        os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    linux.drop_capabilities()
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1, "setting no_new_privs")
    call_filter.install()


def die_with_parent() -> None:
    """Ask for SIGKILL when the parent ends. A change of user cancels this, so it comes last."""
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL, "setting the signal of the parent's death")


def hide_memory() -> None:
    """Let no process of the same user trace this one or read its memory."""
    linux.prctl(linux.PR_SET_DUMPABLE, 0, "hiding memory")
