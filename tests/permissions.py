"""Being refused by storage, which root never is: a test can take that privilege from itself."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_VERSION = 0x20080522
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2
_Header = ctypes.c_uint32 * 2
_Sets = ctypes.c_uint32 * 6


@contextmanager
def locked(*paths: Path) -> Iterator[None]:
    """Files and folders that this thread may neither read nor enter, whoever it is."""
    modes = [path.stat().st_mode for path in paths]
    with _bound_by_modes():
        for path in paths:
            path.chmod(0)
        try:
            yield
        finally:
            for path, mode in reversed(list(zip(paths, modes, strict=True))):
                path.chmod(mode)


@contextmanager
def _bound_by_modes() -> Iterator[None]:
    """Without what lets root read and enter everything; see capset(2)."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, before = _Header(_VERSION, 0), _Sets()
    if libc.capget(header, before) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    # Effective, permitted and inheritable ones, in two halves; what stays permitted can be taken back.
    bound = _Sets(*before)
    bound[0] &= ~(1 << _CAP_DAC_OVERRIDE | 1 << _CAP_DAC_READ_SEARCH)
    if libc.capset(header, bound) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    try:
        yield
    finally:
        libc.capset(header, before)
