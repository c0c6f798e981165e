"""Say what is missing on this machine before `make setup` starts; any Python 3 can run this."""

import importlib.util
import os
import shutil
import sys
import sysconfig


def problems():
    """Return what must be installed first, one sentence each."""
    found = []
    if sys.version_info < (3, 11):  # noqa: UP036 - this script runs before there is a new enough Python
        found.append(
            "Python " + sys.version.split()[0] + " is too old; use 3.11 or newer: make PYTHON=python3.11 setup"
        )
    if importlib.util.find_spec("ensurepip") is None:
        found.append("Python can't make environments; install its venv package (Debian: apt-get install python3-venv)")
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        found.append(
            "Python's headers are missing; DeepSpeed compiles against them (Debian: apt-get install python3-dev)"
        )
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        found.append("no C++ compiler; DeepSpeed compiles a small extension (Debian: apt-get install g++)")
    return found


if __name__ == "__main__":
    missing = problems()
    for problem in missing:
        print("setup: " + problem, file=sys.stderr)
    sys.exit(1 if missing else 0)
