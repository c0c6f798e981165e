"""Output that nobody reads to its end, as of `python -m launch status runs | head`."""

from __future__ import annotations

import os
import signal
import sys

NOBODY_READS = 128 + signal.SIGPIPE
"""Exit code: what a shell says of a program that SIGPIPE has ended."""


def give_up_output() -> int:
    """Send what is still to be written, when Python ends at the latest, nowhere; return NOBODY_READS.

    To be called where a BrokenPipeError arrives: whoever was to read has seen enough, which is no failure to report.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    return NOBODY_READS
