"""Files behind URLs, of any kind that fsspec has: patient with the network, and read through a cache on disk."""

from __future__ import annotations

import errno
import hashlib
import io
import queue
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from data_pipeline.sources.errors import DataError
from data_pipeline.sources.formats import Stat
from data_pipeline.sources.range_cache import RangeCache
from data_pipeline.sources.suffixes import FORMATS, MDS_INDEX, format_of

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

PART_BYTES = 4 << 20
"""What is fetched and kept at once: large against a request's latency, small against a document's neighbours."""
ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 0.5
TIMEOUT_SECONDS = 30.0

_CHECKSUM_KEYS = ("etag", "md5hash", "generation", "checksum", "content_md5", "content-md5")
_TIME_KEYS = ("mtime", "last_modified", "lastmodified", "last-modified", "modified", "updated", "created")
_FINAL = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, ImportError, NotImplementedError)
_PACKAGES = {
    "http": "aiohttp requests",
    "https": "aiohttp requests",
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "adl": "adlfs",
}
"""What fsspec needs for a protocol, by the names pip knows."""
_T = TypeVar("_T")


class RemoteFiles:
    """Files behind URLs, as formats.Storage has them.

    All reads are of whole parts of PART_BYTES, kept in the cache where there is one. Failed requests are repeated a few
    times with growing pauses, and one that is never answered counts as failed, so nothing hangs.

    Args:
        cache_dir: folder of the cache, shared with other processes; None keeps nothing.
        max_bytes: most bytes the cache may take.
    """

    def __init__(self, cache_dir: Path | None, max_bytes: int) -> None:
        self._cache = None if cache_dir is None else RangeCache(cache_dir / "ranges", max_bytes)
        self._stats: dict[str, Stat] = {}

    def data_files(self, location: str) -> list[str]:
        """The URLs of the files that hold documents at `location`: itself, or those in the folder in sorted order.

        A folder of a web server is one whose URL ends in a slash.

        Raises:
            DataError: there are none, or the place cannot be reached.
        """
        filesystem, path = _filesystem(location)
        # Not isdir: over HTTP it reads a whole file, to look for links in it.
        if not location.endswith("/") and _patiently(location, lambda: filesystem.info(path))["type"] != "directory":
            return [location]
        root = path.rstrip("/") + "/"
        found = _patiently(location, lambda: filesystem.find(root))
        names = {name.removeprefix(root): name for name in found if name.startswith(root)}
        chosen = _chosen(names)
        if not chosen:
            raise DataError(f"{location} holds no {', '.join(FORMATS)} file; name a folder or a file that does")
        return [filesystem.unstrip_protocol(names[name]) for name in chosen]

    def stat(self, location: str) -> Stat:
        """Size of a file, and its etag, checksum or time of change, whichever the place tells; asked anew every time.

        Raises:
            FileNotFoundError: there is none.
            DataError: the place cannot be reached, or does not tell the size.
        """
        filesystem, path = _filesystem(location)
        filesystem.invalidate_cache(path)
        info = _patiently(location, lambda: filesystem.info(path))
        if info.get("size") is None:
            raise DataError(
                f"{location}: its place does not tell how large it is, so it cannot be read in parts; copy it to a disk"
            )
        stat = Stat(int(info["size"]), _version(info))
        self._stats[location] = stat
        return stat

    def open(self, location: str) -> BinaryIO:
        """Open a file for reading and seeking; parts from the cache are compared with their checksums.

        Raises:
            FileNotFoundError: there is none.
            DataError: the place cannot be reached.
        """
        return io.BufferedReader(_Remote(self, location, self.stat(location).size), PART_BYTES)

    def read_range(self, location: str, start: int, end: int, *, afresh: bool = False) -> bytes:
        """The bytes [start, end) of a file, fewer only where it ends before.

        Parts from the cache are not checked here: a caller whose checksum disagrees asks again `afresh`.

        Raises:
            FileNotFoundError: there is none.
            DataError: the place cannot be reached, or sends other than what was asked for.
        """
        return self._read(location, start, end, afresh=afresh, check=False)

    def _read(self, location: str, start: int, end: int, *, afresh: bool, check: bool) -> bytes:
        stat = self._stats.get(location) or self.stat(location)
        key = hashlib.sha256(f"{location}\n{stat.size}\n{stat.version}".encode()).hexdigest()[:32]
        end = min(end, stat.size)
        pieces: list[bytes] = []
        for part_start in range(start - start % PART_BYTES, end, PART_BYTES):
            part_end = min(part_start + PART_BYTES, stat.size)
            first, last = max(start, part_start), min(end, part_end)
            piece = None
            if self._cache is not None:
                if afresh:
                    self._cache.drop(key, part_start, part_end)
                else:
                    piece = self._cache.read(key, part_start, part_end, first, last, check=check)
            if piece is None:
                part = _fetch(location, part_start, part_end)
                if self._cache is not None:
                    self._cache.keep(key, part_start, part_end, part)
                piece = part[first - part_start : last - part_start]
            pieces.append(piece)
        return b"".join(pieces)


class _Remote(io.RawIOBase):
    """The file object of `RemoteFiles.open`, to be buffered."""

    def __init__(self, files: RemoteFiles, location: str, size: int) -> None:
        self._files = files
        self._location = location
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        data = self._files._read(self._location, self._position, stop, afresh=False, check=True)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _filesystem(location: str) -> tuple[AbstractFileSystem, str]:
    """The fsspec filesystem of a URL, and the file's name there."""
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(location)
    except ImportError as error:
        raise DataError(f"{location} needs a package that is not installed: {error}; {_cure(location)}") from error
    except ValueError as error:
        known = ", ".join(sorted(fsspec.available_protocols()))
        raise DataError(f"{location} is no URL that can be read ({error}); fsspec knows {known}") from error
    return filesystem, path


def _cure(location: str) -> str:
    packages = _PACKAGES.get(location.split("://")[0])
    return f"pip install {packages}" if packages else "install it with pip"


def _fetch(location: str, start: int, end: int) -> bytes:
    """The bytes [start, end) from the place itself."""
    filesystem, path = _filesystem(location)

    def once() -> bytes:
        data = filesystem.cat_file(path, start=start, end=end)
        if len(data) != end - start:
            raise OSError(
                f"bytes {start} to {end} were asked for and {len(data)} came; the file changed, or is not served in parts"
            )
        return bytes(data)

    return _patiently(location, once)


def _patiently(location: str, request: Callable[[], _T]) -> _T:
    """Return the answer to a request, repeating it where it fails for a reason that may pass."""
    pause = FIRST_PAUSE_SECONDS
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _within(TIMEOUT_SECONDS, request)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "there is no such file", location) from error
        except PermissionError as error:
            message = f"access is refused ({error}); check the credentials"
            raise PermissionError(errno.EACCES, message, location) from error
        except Exception as error:
            if isinstance(error, _FINAL) or attempt == ATTEMPTS:
                tried = f" in {attempt} attempts" if attempt > 1 else ""
                raise DataError(
                    f"{location} cannot be read{tried}: {error or type(error).__name__}; check the network and the address, "
                    "and start again"
                ) from error
        time.sleep(pause)
        pause *= 2
    raise AssertionError("the last attempt returns or raises")


def _within(seconds: float, request: Callable[[], _T]) -> _T:
    """Run a request in a thread of its own, which is left behind when it does not answer in time.

    Not every backend of fsspec has timeouts, and those that do call them differently.
    """
    outcome: queue.SimpleQueue[tuple[_T | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome.put((request(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=work, name="remote read", daemon=True).start()
    try:
        answer, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]


def _chosen(names: Iterable[str]) -> list[str]:
    """Of all files in a folder, by their names there, those that suffixes.data_files lists."""
    if MDS_INDEX in names:
        return [MDS_INDEX]
    visible = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    found = [name for name in visible if "/" not in name and format_of(name) not in (None, "text")]
    splits = [name for name in visible if name.count("/") == 1 and name.endswith(f"/{MDS_INDEX}")]
    texts = [name for name in visible if format_of(name) == "text"]
    return sorted(found or splits or texts, key=lambda name: name.split("/"))


def _version(info: dict[str, Any]) -> str:
    """What the place tells about a file that changes with its content; empty where that is nothing but the size."""
    told = {str(key).lower(): value for key, value in info.items()}
    return next((f"{key} {told[key]}" for key in _CHECKSUM_KEYS + _TIME_KEYS if told.get(key)), "")
