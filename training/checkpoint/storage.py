"""What is done to shared storage to save a checkpoint, call by call; no torch in here.

    .<step>.<attempt>.unfinished/   being written by all ranks; gets its name when it is complete
    .<step>.replaced                an earlier checkpoint of the same step, while a new one takes its place
    .<step>.deleted                 on its way out

A process may be killed between any two calls: what was a checkpoint before is one after `tidy_up`, and nothing else is.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from training.checkpoint.manifest import MANIFEST, seal
from training.files import sync_folder

CHUNK_BYTES = 16 << 20
"""What is written and hashed at once: small enough to stay in the cache of a core between the two."""

VISIBLE_SECONDS = 60.0
"""How long a file of another node may stay invisible: network file systems remember for so long that it was not there."""


def unfinished_folder(root: Path, step: int, attempt: str) -> Path:
    """Where an attempt to save a step is put together."""
    return root / f".{step}.{attempt}.unfinished"


def write_file(path: Path, chunks: Iterable[Any], *, read_back: bool) -> dict[str, Any]:
    """Write a file of a checkpoint, through to the disk; return its entry in the manifest.

    Args:
        path: the file; its folder, and that of the checkpoints, are made where they are missing. The run's directory is not:
            one that is away for a while could not come back then.
        chunks: what it consists of, one after the other (bytes-like).
        read_back: read it again afterwards, from the disk as far as the system lets us, and compare.

    Raises:
        OSError: storage did not take it, or gave back something else.
    """
    path.parent.parent.mkdir(exist_ok=True)
    path.parent.mkdir(exist_ok=True)
    written, digest = 0, hashlib.sha256()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        for chunk in chunks:
            piece = memoryview(chunk).cast("B")
            digest.update(piece)
            _write_all(descriptor, piece)
            written += len(piece)
        os.fsync(descriptor)
        if read_back and _digest_on_disk(descriptor) != digest.hexdigest():
            raise OSError(errno.EIO, "reads differently from what was written", str(path))
    finally:
        os.close(descriptor)
    return {"name": path.name, "bytes": written, "sha256": digest.hexdigest()}


def _write_all(descriptor: int, rest: memoryview) -> None:
    """Write all of it; a single call may take a part only."""
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _digest_on_disk(descriptor: int) -> str:
    digest = hashlib.sha256()
    # What was just synchronised need not stay in memory, and else it would come from there.
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(descriptor, 0, os.SEEK_SET)
    while chunk := os.read(descriptor, CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def commit(folder: Path, final: Path, content: dict[str, Any], superfluous: Sequence[int]) -> list[int]:
    """Make a checkpoint of what all ranks have written to `folder`: the manifest, then the name; then delete others.

    Args:
        folder: an unfinished folder with all files of content["files"].
        final: its name, which an earlier checkpoint of the same step may have.
        content: of the manifest.
        superfluous: steps of checkpoints beside it that are not needed any more.

    Returns:
        the steps that could not be deleted.

    Raises:
        OSError: storage refused something; nothing was deleted, and an earlier checkpoint of the step is there unless the new one is.
    """
    root = final.parent
    for entry in content["files"]:
        _await_file(folder / entry["name"], entry["bytes"])
    descriptor = os.open(folder / MANIFEST, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        _write_all(descriptor, memoryview(seal(content)))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_folder(folder)
    replaced = root / f".{final.name}.replaced"
    if final.exists():
        if replaced.exists():
            shutil.rmtree(replaced)
        final.rename(replaced)
    try:
        folder.rename(final)
    except OSError:
        if replaced.exists():
            replaced.rename(final)
        raise
    sync_folder(root)
    sync_folder(root.parent)
    return delete(root, superfluous)


def _await_file(path: Path, size: int) -> None:
    deadline = time.monotonic() + VISIBLE_SECONDS
    while True:
        try:
            found = path.stat().st_size
        except FileNotFoundError:
            found = -1
        if found == size:
            return
        if time.monotonic() > deadline or not path.parent.is_dir():
            what = "is not there" if found < 0 else f"has {found} bytes instead of {size}"
            raise OSError(errno.EIO, f"{what} although another rank has written it", str(path))
        time.sleep(0.1)


def delete(root: Path, steps: Sequence[int]) -> list[int]:
    """Delete checkpoints, which are none from the first call on, and what earlier attempts have left; the steps that stay."""
    stay = []
    for step in steps:
        try:
            (root / str(step)).rename(root / f".{step}.deleted")
        except FileNotFoundError:
            pass
        except OSError:
            stay.append(step)
    _clear(root, leftovers(root))
    return stay


def _clear(root: Path, found: Sequence[tuple[Path, re.Match[str]]]) -> None:
    """Remove what is no checkpoint any more, once the disk knows that it isn't: else a name could come back after a power
    cut, and the files not.
    """
    if not found:
        return
    try:
        sync_folder(root)
    except OSError:
        return
    for path, _ in found:
        shutil.rmtree(path, ignore_errors=True)


def leftovers(root: Path) -> list[tuple[Path, re.Match[str]]]:
    """Folders that are neither checkpoints nor anything else that people may have put there."""
    found = (
        (path, re.fullmatch(r"\.(\d+)(\.\w+)?\.(unfinished|replaced|deleted)", path.name)) for path in root.iterdir()
    )
    return [(path, match) for path, match in found if match is not None]


def discard(folder: Path) -> None:
    """Remove an attempt that failed, as far as storage lets us."""
    shutil.rmtree(folder, ignore_errors=True)


def tidy_up(root: Path) -> None:
    """Bring the folder of checkpoints in order after starts that were killed; nobody may be writing into it."""
    if not root.is_dir():
        return
    for path, match in leftovers(root):
        if match[3] == "replaced" and not (root / match[1]).exists():
            # Killed after the old one had lost its name and before the new one had it.
            path.rename(root / match[1])
    _clear(root, leftovers(root))
    sync_folder(root)
