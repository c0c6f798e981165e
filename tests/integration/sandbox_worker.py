"""Judges the programs that come on standard input, a line of JSON each, as the user named in the first argument."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from evals.code import system_calls as linux
from evals.code.judge import judge
from evals.code.policy import Policy
from evals.code.program import Program
from evals.code.sandbox import Sandbox

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534


def become_nobody() -> None:
    """Start this script anew as an ordinary user, who can read Python and the repository and nothing else of root's."""
    linux.unshare(linux.CLONE_NEWNS, "a mount namespace")
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    needed = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), ROOT}
    closed = {parent for path in needed for parent in path.parents if not parent.stat().st_mode & 0o001}
    for folder in (each for each in closed if not closed & set(each.parents)):
        below = {path: os.open(path, os.O_PATH) for path in needed if folder in path.parents}
        linux.mount("tmpfs", str(folder), "tmpfs", 0, "mode=0755")
        for path, fd in below.items():
            path.mkdir(parents=True)
            linux.mount(f"/proc/self/fd/{fd}", str(path), flags=linux.MS_BIND | linux.MS_REC)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    os.execv(sys.executable, [sys.executable, __file__, "me"])


def main() -> None:
    if sys.argv[1] == "nobody":
        become_nobody()
    os.set_inheritable(os.open(__file__, os.O_RDONLY), True)
    sandboxes: dict[str, Sandbox] = {}
    for line in sys.stdin:
        request = json.loads(line)
        policy = Policy(**request["policy"])
        programs = [Program(id=str(i), sample=0, **program) for i, program in enumerate(request["programs"])]
        if len(programs) == 1:
            key = json.dumps(request["policy"])
            sandboxes[key] = sandboxes.get(key) or Sandbox(policy)
            verdicts = [sandboxes[key].run(programs[0])]
        else:
            verdicts = judge(programs, policy=policy, workers=2)
        print(json.dumps([vars(verdict) for verdict in verdicts]), flush=True)


if __name__ == "__main__":
    main()
