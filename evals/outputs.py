"""Whether a result can be written where a command line says, asked before the work for it begins."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from evals.errors import EvalError


def check_place(path: Path, advice: str = "name another place with --out") -> None:
    """Make sure that a file can be made where `path` says; nothing is left behind, and no folder is made.

    Raises:
        EvalError: `path` is a folder, is no name for a file, or its folder takes no files; `advice` ends the message.
    """
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with suppress(FileNotFoundError):
            os.lstat(path)
        # Tried, as permissions say nothing of /proc or of a file system that is mounted to be read only.
        with tempfile.TemporaryFile(dir=next(each for each in path.absolute().parents if os.path.lexists(each))):
            pass
    except OSError as error:
        raise EvalError(f"{path}: cannot be written ({error.strerror}); {advice}") from error
