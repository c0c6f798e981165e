"""The process that writes a rank's part of checkpoints: `python -m training.checkpoint.writer_process DESCRIPTOR PARENT`.

It is told what to do by lines of JSON on its standard input, does one thing after the other, and answers each with a line.
It takes only the processor time that nobody else wants, imports no torch, and ends with its rank, however that ends.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from training.checkpoint import storage

_PR_SET_PDEATHSIG = 1


def main(descriptor: int, parent: int) -> None:
    """Serve the process `parent`, writing from the memory behind `descriptor`."""
    # Signals for a run reach all its processes; the rank decides what they mean.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    os.nice(19)
    memory = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), pieces(memory))), flush=True)


def answer(request: dict[str, Any], chunks: Iterable[Any]) -> dict[str, Any]:
    """Do what is asked, a file to consist of `chunks`; what came of it, or why it could not be done."""
    try:
        return {"value": perform(request, chunks)}
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None:
            # A write that finds no room doesn't know of what.
            error.filename = request.get("path") or request.get("final")
        return {"error": describe(error)}


def perform(request: dict[str, Any], chunks: Iterable[Any]) -> Any:
    """One call of training.checkpoint.storage; `chunks` is what a file is to consist of."""
    match request["do"]:
        case "write":
            return storage.write_file(Path(request["path"]), chunks, read_back=request["read_back"])
        case "commit":
            return storage.commit(
                Path(request["folder"]), Path(request["final"]), request["content"], request["superfluous"]
            )
        case "discard":
            return storage.discard(Path(request["folder"]))
        case other:
            raise ValueError(f"unknown request {other}")


def pieces(memory: mmap.mmap) -> Iterator[memoryview]:
    """The memory in pieces of a size that is written at once."""
    view = memoryview(memory)
    for begin in range(0, len(view), storage.CHUNK_BYTES):
        yield view[begin : begin + storage.CHUNK_BYTES]


def describe(error: Exception) -> str:
    """An error of storage in a line: the file and what is wrong with it."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
