"""A bounded cache, on disk, of parts of files that are far away. Several processes may share its folder."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_CRC_BYTES = 4
_LOCK_SECONDS = 10.0


class RangeCache:
    """Parts of files under `folder`: `<key of the file>/<start>-<end>`, least recently used first to go.

    A part is kept with its crc32. The parts' bytes never exceed `max_bytes`: room is made, under a lock of the folder,
    before a part is written. A cache only ever saves time: what cannot be kept or read back is a miss, not an error.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def read(self, key: str, start: int, end: int, first: int, last: int, *, check: bool = False) -> bytes | None:
        """Bytes [first, last) of the file, from its kept part [start, end); None where that is not kept, or damaged.

        With `check` the whole part is compared with its crc32; a caller with a checksum of its own can do without.
        """
        path = self._path(key, start, end)
        try:
            with path.open("rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size != end - start + _CRC_BYTES:
                    return None
                if check:
                    whole = file.read(end - start)
                    if _crc(whole) != file.read(_CRC_BYTES):
                        return None
                    data = whole[first - start : last - start]
                else:
                    data = os.pread(file.fileno(), last - first, first - start)
                # The time of use; access times are not kept up on most mounts.
                os.utime(file.fileno())
        except OSError:
            return None
        return data if len(data) == last - first else None

    def keep(self, key: str, start: int, end: int, data: bytes) -> None:
        """Keep the part [start, end) of a file, if there is room for it at all."""
        size = len(data) + _CRC_BYTES
        if size > self.max_bytes:
            return
        path = self._path(key, start, end)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked_total() as total:
                if total is not None:
                    self._make_room(total, size)
                    path.parent.mkdir(exist_ok=True)
                    _write(path, data)
        except OSError:
            # A full or read-only disk: the part is fetched again when it is needed again.
            return

    def drop(self, key: str, start: int, end: int) -> None:
        """Forget a part that proved damaged."""
        self._path(key, start, end).unlink(missing_ok=True)

    def _path(self, key: str, start: int, end: int) -> Path:
        return self.folder / key / f"{start}-{end}"

    @contextmanager
    def _locked_total(self) -> Iterator[int | None]:
        """Hold the folder's lock; yields the file that counts the bytes, or None where others hold it for too long."""
        descriptor = os.open(self.folder / ".total", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            yield descriptor if _lock(descriptor) else None
        finally:
            os.close(descriptor)

    def _make_room(self, total_file: int, size: int) -> None:
        """Count `size` more bytes; where they are too many, remove the parts that were not used for longest.

        The count is raised before the part is written, so that a process killed in between leaves it too high, which
        the next count of the folder mends, and never too low.
        """
        text = os.pread(total_file, 32, 0)
        total = int(text) if text.isdigit() else None
        if total is None or total + size > self.max_bytes:
            # Somewhat more than needed: a count of the folder for every single part would be slow.
            total = self._evict(min(self.max_bytes - size, int(self.max_bytes * 0.95)))
        os.ftruncate(total_file, 0)
        os.pwrite(total_file, str(total + size).encode(), 0)

    def _evict(self, allowed: int) -> int:
        """Remove parts until `allowed` bytes are left, and what killed writers left behind; returns the bytes left."""
        parts: list[tuple[float, int, Path]] = []
        for path in self.folder.glob("*/*"):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            if path.name.startswith("."):
                # Only the holder of the lock, us, writes temporary files.
                path.unlink(missing_ok=True)
            else:
                parts.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in parts)
        for _, size, path in sorted(parts):
            if total <= allowed:
                break
            path.unlink(missing_ok=True)
            total -= size
            with suppress(OSError):
                path.parent.rmdir()
        return total


def _write(path: Path, data: bytes) -> None:
    """Let the part appear whole or not at all. Not flushed to the disk: a damaged part is noticed and fetched again."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.write(_crc(data))
            os.fchmod(file.fileno(), 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(_CRC_BYTES, "little")


def _lock(descriptor: int) -> bool:
    """Lock the file until it is closed; False where that took too long."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
